"""`moonlet chat PATH`"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moonlet.cli.errors import one_line
from moonlet.cli.generate import shown
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
    from rich.console import Console

    from moonlet.cli.conversation import Conversation
    from moonlet.text.chat import Delta

_HELP = """\
/help               this list
/reset              forget everything that was said
/system [TEXT]      instructions for the model; without TEXT its own
/retry              answer the last message anew
/undo               take back the last message and its answer
/drop [N]           forget the N oldest turns, to make room
/temperature X      below 1 surer, above 1 wilder, 0 always the likeliest
/top-p X            keep the likeliest tokens up to this probability
/top-k N            keep the N likeliest tokens; 0 keeps all
/min-p X            keep tokens this fraction as likely as the likeliest
/max-new-tokens N   tokens of an answer at most
/seed [N]           equal seeds give equal answers; without N a fresh one each time
/save FILE          write the conversation to a file
/load FILE          go on with one
/stats              length, memory, speed
/exit               leave, as Ctrl-D does; Ctrl-C stops an answer
//...               a message that begins with a slash"""

_SETTINGS: dict[str, Callable[[str], float]] = {
    "temperature": float,
    "top-p": float,
    "min-p": float,
    "top-k": int,
    "max-new-tokens": int,
}


def chat(
    path: Annotated[Path, typer.Argument(help="A run folder or a model directory.", show_default=False)],
    system: Annotated[str | None, typer.Option(help="Instructions for the model.", show_default=False)] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    chat_form: ChatForm = None,
    story: Annotated[bool, typer.Option("--story", help="Continue a text, whatever the model can.")] = False,
    thinking: Thinking = True,
) -> None:
    """Talk to a model in the terminal; one that knows no chat tells a story together with you.

    Type /help for what can be changed while talking. Works in a pipe too: a message a line.

    Example: `moonlet chat runs/quickstart --temperature 0.6`
    """
    from moonlet.generate.sample import SamplingParams

    params = SamplingParams(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed)

    from rich.console import Console

    from moonlet.cli.conversation import Conversation
    from moonlet.folder import load, model_folder
    from moonlet.generate import lay_out
    from moonlet.ops.allocator import keep_freed_memory
    from moonlet.text.chat.detect import trained_form

    keep_freed_memory()
    if story and chat_form is not None:
        raise ValueError("--story and --chat-form exclude each other; give one of them")
    model, tokenizer = load(path, notice=lambda line: print(f"moonlet: {line}", file=sys.stderr))
    form = None if story else trained_form(model_folder(path), tokenizer, chat_form)
    lay_out(model)
    conversation = Conversation(model, tokenizer, form, params, system=system, thinking=thinking)
    _Terminal(conversation, Console(highlight=False), sys.stdin.isatty()).run()


class _Terminal:
    """Reads lines, shows answers, and keeps the conversation alive through mistakes and Ctrl-C."""

    def __init__(self, conversation: Conversation, console: Console, interactive: bool) -> None:
        self.conversation, self.console, self.interactive = conversation, console, interactive

    def run(self) -> None:
        """Until the end of the input, or /exit."""
        if self.interactive:
            self._greet()
        while (line := self._read()) is not None:
            try:
                if not self._take(line):
                    return
            except (ValueError, OSError) as error:
                self._say(one_line(error))

    def _greet(self) -> None:
        with suppress(ImportError):
            import readline  # noqa: F401  # gives input() its line editing and history
        if self.conversation.form is None:
            self._say("This model continues texts: begin one, and Enter alone goes on. /help, Ctrl-D leaves.")
        else:
            self._say(f"Chat form {self.conversation.form.name}. /help, Ctrl-C stops an answer, Ctrl-D leaves.")

    def _read(self) -> str | None:
        """The next line; None at the end of the input."""
        while True:
            try:
                return input("\n> " if self.interactive else "")
            except EOFError:
                if self.interactive:
                    print()
                return None
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                self._say("\n(Ctrl-D or /exit leaves)")
            except UnicodeDecodeError as error:
                raise ValueError(f"the input is not UTF-8 at byte {error.start}") from None

    def _take(self, line: str) -> bool:
        """Do what a line says; whether to go on."""
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line[1:].strip().partition(" ")
            return self._command(name, rest.strip())
        text = line.removeprefix("/") if line.startswith("//") else line
        # A story goes on at Enter alone; in a chat nothing was said.
        if text.strip() or (self.conversation.form is None and self.interactive):
            self._show(self.conversation.answer(text))
        return True

    def _command(self, name: str, rest: str) -> bool:
        conversation = self.conversation
        if name in ("exit", "quit"):
            return False
        if name == "retry":
            self._show(conversation.retry())
        elif name in _SETTINGS or name == "seed":
            self._set(name, rest)
        elif name in ("save", "load"):
            if not rest:
                raise ValueError(f"/{name} needs a file: /{name} FILE")
            file = Path(rest).expanduser()
            conversation.save(file) if name == "save" else conversation.load(file)
            self._say(
                f"{name}d {file}: {conversation.stats()}" if name == "save" else f"{file}: {conversation.stats()}"
            )
        else:
            self._say(self._changed(name, rest))
        return True

    def _changed(self, name: str, rest: str) -> str:
        """Do one of the commands that end in a line; return it."""
        conversation = self.conversation
        match name:
            case "help":
                return _HELP
            case "stats":
                return conversation.stats()
            case "reset":
                conversation.reset()
                return "a new conversation"
            case "system":
                conversation.set_system(rest or None)
                return "the model is told that" if rest else "the model is told what it was trained with"
            case "undo":
                return (
                    f"taken back: {_printable(conversation.undo().content)[:60] or 'Enter alone, and what came of it'}"
                )
            case "drop":
                conversation.drop(_number("drop", rest or "1", int))
                return conversation.stats()
        raise ValueError(f"/{name} is no command; /help lists them")

    def _set(self, name: str, rest: str) -> None:
        conversation = self.conversation
        if name == "seed":
            value: Any = _number(name, rest, int) if rest else None
        else:
            value = _number(name, rest, _SETTINGS[name])
        conversation.params = replace(conversation.params, **{name.replace("-", "_"): value})
        self._say(f"{name} is {'a fresh one each time' if value is None else value}")

    def _show(self, deltas: Iterator[Delta]) -> None:
        """Print an answer as it comes. Ctrl-C stops it, and the conversation keeps what was said."""
        before = ""
        try:
            for delta in deltas:
                text = _printable(shown(delta, before))
                style = "dim" if delta.kind == "reasoning" else None
                self.console.print(text, end="", style=style, markup=False, emoji=False, soft_wrap=True)
                self.console.file.flush()
                before = delta.kind
        except KeyboardInterrupt:
            deltas.close()  # type: ignore[attr-defined]
            if not self.interactive:
                raise
            self.console.print(" (stopped)", style="dim", end="")
        print(flush=True)
        last = self.conversation.last
        if self.interactive and last is not None and last.cut and last.drawn >= self.conversation.params.max_new_tokens:
            self._say(f"(cut at {last.drawn} tokens; /max-new-tokens changes that)")

    def _say(self, text: str) -> None:
        """A line of our own; in a pipe it stays apart from answers."""
        if self.interactive:
            self.console.print(text, style="dim", markup=False, emoji=False, soft_wrap=True)
        else:
            print(f"moonlet: {text}", file=sys.stderr)


def _printable(text: str) -> str:
    """`text` without what would steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _number(name: str, text: str, kind: Callable[[str], float]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"/{name} needs a {'whole ' if kind is int else ''}number, not {text!r}") from None
