"""`moonlet eval PATH [--data FILE]`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    path: Annotated[Path, typer.Argument(help="A run folder or a model directory.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A text, documents between <|endoftext|> lines.", show_default="the run's own validation text"
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens read at once.", show_default="what the run trained on, else 1024")
    ] = None,
) -> None:
    """Print loss and bits per byte of a text, and the entropy floor where it is known.

    Example: `moonlet eval runs/quickstart --data stories.txt`
    """
    from rich.console import Console

    from moonlet.eval.report import evaluate_folder

    result = evaluate_folder(path, data, context)
    Console().print(result.lines(), highlight=False, soft_wrap=True)
