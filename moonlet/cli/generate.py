"""`moonlet generate PATH [PROMPT ...]`"""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moonlet.cli.sampling import (
    ChatForm,
    MaxNewTokens,
    MinP,
    RepetitionPenalty,
    Seed,
    Temperature,
    Thinking,
    TopK,
    TopP,
)

if TYPE_CHECKING:
    from moonlet.generate import SamplingParams
    from moonlet.text.chat import Delta


def generate(
    path: Annotated[Path, typer.Argument(help="A run folder or a model directory.", show_default=False)],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Beginnings of texts.", metavar="[PROMPT]...", show_default="the empty text"),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="More prompts, one a line; empty lines are skipped.", show_default=False)
    ] = None,
    samples: Annotated[int, typer.Option(help="Continuations of each prompt.", min=1)] = 1,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given again.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts continued together at most.", min=1)] = 16,
    exact: Annotated[
        bool, typer.Option(help="Each text is what it would be alone; several are faster without.")
    ] = True,
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a message, answered in the model's chat form.")
    ] = False,
    chat_form: ChatForm = None,
    thinking: Thinking = True,
) -> None:
    """Continue texts; a single one appears as it is made.

    Example: `moonlet generate runs/quickstart "Once upon a time" --temperature 0.6 --seed 1`
    """
    from moonlet.generate import SamplingParams

    params = SamplingParams(
        max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, tuple(stop or ())
    )
    texts = [*(prompts or []), *_lines(file)]
    if not texts and file is not None:
        raise ValueError(f"{file} holds no prompts; write one a line")
    texts = [text for text in texts or [""] for _ in range(samples)]

    from moonlet.ops.allocator import keep_freed_memory

    keep_freed_memory()
    if chat or chat_form is not None:
        _answer(path, texts, params, chat_form, thinking, exact)
    else:
        _continue(path, texts, params, batch_size, exact)


def _continue(path: Path, texts: list[str], params: SamplingParams, batch_size: int, exact: bool) -> None:
    """Continue texts; a single one appears as it is made."""
    from moonlet.folder import load
    from moonlet.generate import complete, lay_out

    model, tokenizer = load(path, notice=_say)
    lay_out(model)
    if len(texts) > 1:
        for number, done in enumerate(complete(model, tokenizer, texts, params, batch_size, exact), 1):
            print(f"[{number}] {done.prompt}{done.text}\n")
        return

    begun = False

    def show(index: int, piece: str) -> None:
        # The prompt appears with the first piece, so that a request which is refused prints nothing but its error.
        nonlocal begun
        print(piece if begun else texts[0] + piece, end="", flush=True)
        begun = True

    try:
        complete(model, tokenizer, texts, params, batch_size, exact, show)
        show(0, "")
    finally:
        if begun:
            print(flush=True)


def _answer(
    path: Path, texts: list[str], params: SamplingParams, chosen: str | None, thinking: bool, exact: bool
) -> None:
    """Answer one message; reasoning, content and calls appear as they are made."""
    from moonlet.folder import load, model_folder
    from moonlet.generate import lay_out, stream_ids
    from moonlet.text.chat import FORMS, Parser, mark_ids, render, to_ids
    from moonlet.text.chat.detect import trained_form

    if len(texts) != 1 or not texts[0]:
        raise ValueError(
            f"a chat answers one message, and there are {len([text for text in texts if text])}; give one PROMPT"
        )
    model, tokenizer = load(path, notice=_say)
    form = trained_form(model_folder(path), tokenizer, chosen)
    if form is None:
        raise ValueError(
            f"{path} was trained on no chats; leave out --chat to continue the text, or choose with --chat-form one of "
            + ", ".join(FORMS)
        )
    ids = to_ids(render([{"role": "user", "content": texts[0]}], form, thinking=thinking), tokenizer)
    lay_out(model)
    ends = {tokenizer.eos_id, mark_ids(tokenizer)["<|im_end|>"]}
    parser = Parser(form, thinking=thinking, tokenizer=tokenizer)
    drawn = stream_ids(model, tokenizer, ids, ends, params, exact)
    before = ""
    try:
        for deltas in chain(map(parser.feed_ids, ([index] for index in drawn)), map(Parser.finish, [parser])):
            for delta in deltas:
                print(shown(delta, before), end="", flush=True)
                before = delta.kind
    finally:
        if before:
            print(flush=True)


def _say(line: str) -> None:
    """What was left unread, where it does not mix with the text."""
    print(f"moonlet: {line}", file=sys.stderr)


def shown(delta: Delta, before: str) -> str:
    """What a piece of an answer looks like behind one of the kind `before`."""
    if delta.kind == "close" or (delta.kind == before != "call"):
        return delta.text
    opening = {"reasoning": "(thinking) ", "call": f"(call) {delta.name or delta.text}", "arguments": " "}
    return (
        ("\n" if before and delta.kind != "arguments" else "")
        + opening.get(delta.kind, "")
        + ("" if delta.kind == "call" else delta.text)
    )


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
