"""Options of the commands that draw texts, `generate` and `chat`: the same names, the same words."""

from __future__ import annotations

from typing import Annotated

import typer

MaxNewTokens = Annotated[int, typer.Option(help="Tokens to draw at most, for each text or answer.")]
Temperature = Annotated[float, typer.Option(help="Below 1 surer, above 1 wilder, 0 always the likeliest.")]
TopK = Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability.")]
MinP = Annotated[float, typer.Option(help="Keep tokens this fraction as likely as the likeliest.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1: seen tokens become less likely.")]
Seed = Annotated[int | None, typer.Option(help="Equal seeds give equal texts.", show_default="a fresh one each time")]
ChatForm = Annotated[str | None, typer.Option(help="Chat form by name.", show_default="what the model's files say")]
Thinking = Annotated[bool, typer.Option(help="In a chat: whether a model that can think may.")]
