"""A conversation with one model, turn by turn: what `moonlet chat` keeps, without its terminal.

A model that was trained on a chat form answers messages in it. Any other continues a text, and then a turn is a piece
that a person wrote and the piece the model wrote behind it: `form` is None, and what is said below of messages is meant
of pieces.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from moonlet.generate.engine import stream_ids
from moonlet.generate.microscope import cache_growth
from moonlet.generate.sample import SamplingParams
from moonlet.generate.text import TextStream
from moonlet.model.model import CausalLM
from moonlet.text import Tokenizer
from moonlet.text.atomic import atomic_write
from moonlet.text.chat import ChatForm, Delta, Message, Parser, mark_ids, read_messages, render, to_ids

MAX_FILE_BYTES = 10_000_000
_FORMAT = "moonlet chat 1"


@dataclass(frozen=True)
class Answered:
    """How an answer came about: tokens `read` and `drawn`, the seconds it took, and whether a limit `cut` it."""

    read: int
    drawn: int
    seconds: float
    cut: bool


class Conversation:
    """Messages, settings and the model that answers.

    Attributes:
        messages: user and assistant in turn, the system's not among them.
        system: the system's message; None: what the form says by default.
        params: how answers are drawn; a seed is that of a first attempt, and each retry has the next.
        last: how the last answer came about.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        form: ChatForm | None,
        params: SamplingParams,
        *,
        system: str | None = None,
        thinking: bool = True,
    ) -> None:
        self.form = form
        self.messages: list[Message] = []
        self.params = params
        self.last: Answered | None = None
        self._model, self._tokenizer, self._thinking = model, tokenizer, thinking
        self._attempts = 0
        self.system: str | None = None
        self.set_system(system)
        # A form that the tokenizer cannot write, or that cannot leave thinking out, shows before anything is said.
        self._ids([Message("user", "?")], opened=True)

    def answer(self, text: str) -> Iterator[Delta]:
        """Add a message and answer it; what comes is what is certain since the last piece.

        However the iteration ends, what was said until then is kept; a turn of nothing is not.

        Raises:
            ValueError: the conversation has no room for it; it is then as before.
        """
        self._attempts = 0
        return self._answer(Message("user", text))

    def retry(self) -> Iterator[Delta]:
        """Answer the last message anew.

        Raises:
            ValueError: there is none, or no room for it any more; the conversation is then as before.
        """
        before = self.messages
        message = self.undo()
        self._attempts += 1
        try:
            return self._answer(message)
        except ValueError:
            self.messages = before
            raise

    def undo(self) -> Message:
        """Take back the last message and its answer; return the message.

        Raises:
            ValueError: there is none.
        """
        if not self.messages:
            raise ValueError("nothing was said yet")
        self.messages, (message, *_) = self.messages[:-2], self.messages[-2:]
        return message

    def drop(self, turns: int = 1) -> None:
        """Forget the oldest messages with their answers.

        Raises:
            ValueError: there are not so many.
        """
        there = len(self.messages) // 2
        if not 1 <= turns <= there:
            raise ValueError(f"{turns} turns cannot be dropped; the conversation has {there}")
        self.messages = self.messages[2 * turns :]

    def reset(self) -> None:
        """Forget everything that was said."""
        self.messages, self.last = [], None

    def set_system(self, text: str | None) -> None:
        """Give the model its instructions; None: the form's own.

        Raises:
            ValueError: a text that is merely continued has no place for them.
        """
        if text is not None and self.form is None:
            raise ValueError("this model continues a text and takes no instructions; write them into the text")
        self.system = text

    def tokens(self) -> int:
        """Tokens of the conversation so far."""
        return len(self._ids(self.messages))

    def stats(self) -> str:
        """A line about length, memory and speed."""
        used, limit = self.tokens(), self._model.config.context_limit
        cache = cache_growth(self._model).at(used)
        line = f"{len(self.messages) // 2} turns, {used} of {limit} tokens, {cache / 1e6:.2f} MB of cache"
        if self.last is not None and self.last.drawn:
            rate = self.last.drawn / max(self.last.seconds, 1e-9)
            line += f"; last: {self.last.read} read, {self.last.drawn} drawn, {rate:.0f} tokens/s"
        return line

    def save(self, path: Path) -> None:
        """Write messages and instructions as JSON."""
        messages = [
            {"role": m.role, "content": m.content, **({"reasoning_content": m.reasoning} if m.reasoning else {})}
            for m in self.messages
        ]
        content = {"format": _FORMAT, "story": self.form is None, "system": self.system, "messages": messages}
        atomic_write(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())

    def load(self, path: Path) -> None:
        """Go on with a conversation that `save` wrote.

        Raises:
            ValueError: it is none; this one then stays.
        """
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {MAX_FILE_BYTES} are read")
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"{path} is no conversation that /save wrote")
        said, system = content.get("messages"), content.get("system")
        if not isinstance(system, str | None):
            raise ValueError(f"{path}: system is {system!r}; it must be a text")
        # An empty list is a conversation too, and no reader of messages takes it.
        messages = [] if said == [] else list(read_messages(said or ()))
        if [m.role for m in messages] != ["user", "assistant"] * (len(messages) // 2):
            raise ValueError(f"{path}: its messages are not user and assistant in turn")
        self.set_system(system)
        self.messages, self.last = messages, None

    def _answer(self, message: Message) -> Iterator[Delta]:
        ids = self._ids([*self.messages, message], opened=True)
        limit = self._model.config.context_limit
        if len(ids) >= limit:
            raise ValueError(
                f"with this the conversation has {len(ids)} tokens and the model reads {limit}: /drop old turns, "
                "or /reset"
            )
        params = replace(self.params, max_new_tokens=min(self.params.max_new_tokens, limit - len(ids)))
        if params.seed is not None:
            params = replace(params, seed=params.seed + self._attempts)
        return self._stream(message, ids, params)

    def _stream(self, message: Message, ids: list[int], params: SamplingParams) -> Iterator[Delta]:
        reader = self._reader(ids)
        ends = {self._tokenizer.eos_id}
        if self.form is not None:
            ends.add(mark_ids(self._tokenizer)["<|im_end|>"])
        drawn, token, began = 0, -1, time.perf_counter()
        try:
            for token in stream_ids(self._model, self._tokenizer, ids, ends, params):
                drawn += 1
                yield from reader.feed(token)
            yield from reader.finish()
        finally:
            reader.finish()
            answer = reader.message()
            if answer.content or answer.reasoning or (drawn and token in ends):
                self.messages += [message, answer]
            self.last = Answered(len(ids), drawn, time.perf_counter() - began, drawn > 0 and token not in ends)

    def _reader(self, ids: list[int]) -> _Turn | _Piece:
        if self.form is None:
            return _Piece(self._tokenizer, ids)
        return _Turn(Parser(self.form, thinking=self._thinking, tokenizer=self._tokenizer))

    def _ids(self, messages: list[Message], opened: bool = False) -> list[int]:
        if self.form is None:
            return [self._tokenizer.bos_id, *self._tokenizer.encode("".join(m.content for m in messages))]
        told = [] if self.system is None else [Message("system", self.system)]
        if not told and not messages:
            return []
        page = render([*told, *messages], self.form, add_generation_prompt=opened, thinking=self._thinking)
        return to_ids(page, self._tokenizer)


class _Turn:
    """Reads an answer in a chat form."""

    def __init__(self, parser: Parser) -> None:
        self._parser = parser

    def feed(self, token: int) -> list[Delta]:
        return self._parser.feed_ids([token])

    def finish(self) -> list[Delta]:
        return self._parser.finish()

    def message(self) -> Message:
        parsed = self._parser.parsed
        return Message("assistant", parsed.content, reasoning=parsed.reasoning)


class _Piece:
    """Reads a text that goes on."""

    def __init__(self, tokenizer: Tokenizer, before: list[int]) -> None:
        self._stream, self._eos = TextStream(tokenizer, before=before), tokenizer.eos_id
        self._text: list[str] = []

    def feed(self, token: int) -> list[Delta]:
        return [] if token == self._eos else self._said(self._stream.push(token))

    def finish(self) -> list[Delta]:
        return self._said(self._stream.finish())

    def message(self) -> Message:
        return Message("assistant", "".join(self._text))

    def _said(self, text: str) -> list[Delta]:
        if not text:
            return []
        self._text.append(text)
        return [Delta("content", text)]
