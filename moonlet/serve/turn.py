"""What an assistant's turn may be, as a grammar over ids: which calls it may, must or must not make, and in what form
its content stands.

    turn   = [ thought ] ( content [ calls ] | calls )
    calls  = <|tool_calls_section_begin|> call { call } <|tool_calls_section_end|>
    call   = <|tool_call_begin|> functions.NAME:INDEX <|tool_call_argument_begin|> JSON <|tool_call_end|>

    tool_choice    content            calls
    none           as asked           no mark of a call can be drawn
    auto           as asked           may come; once begun, each is whole, of a declared name, by that name's schema
    required       none               at least one comes
    a name         none               exactly one comes, of that name

A mark is one special token, so between marks nothing is decided here: thought and free content pass with the same mask
at every step, and ids, arguments and JSON content are left to the grammars of `moonlet.generate.grammar`. As there,
[EOS] in a mask says that the text may end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from moonlet.generate.request import Grammar, Matcher
from moonlet.text import Tokenizer
from moonlet.text.chat import ChatForm, call_id, mark_ids
from moonlet.text.chat.forms import (
    CALL_ARGUMENTS,
    CALL_BEGIN,
    CALL_END,
    CALL_MARKS,
    CALLS_BEGIN,
    CALLS_END,
    THINK,
    THINK_END,
    TURN_MARKS,
)

MOST_CALLS = 64
"""Calls of one turn; a model that would go on for ever has to stop."""

State = Literal["thought", "content", "section", "id", "arguments", "between", "closed"]


@dataclass(frozen=True)
class Calls:
    """The functions that a turn may call.

    Attributes:
        functions: name -> what its arguments must be.
        must: whether it has to call one.
        several: whether it may call more than one.
        before: calls made earlier in the conversation, where a form counts through.
    """

    functions: Mapping[str, Grammar]
    must: bool = False
    several: bool = True
    before: int = 0


@dataclass(frozen=True)
class TurnGrammar:
    """The turns that a request allows.

    Attributes:
        form: how the conversation is written.
        thinking: whether the prompt opened a thought.
        calls: None: there must be none.
        content: what text beside calls must be; None: anything.
        choose: makes a grammar of some texts, one of which must stand.
    """

    tokenizer: Tokenizer
    form: ChatForm
    thinking: bool
    calls: Calls | None
    content: Grammar | None
    choose: Callable[[list[str]], Grammar] = field(repr=False)

    def matcher(self) -> TurnMatcher:
        """One that stands at the beginning of the turn."""
        return TurnMatcher(self)


class TurnMatcher:
    """Follows one turn."""

    def __init__(self, turn: TurnGrammar) -> None:
        self._turn, self._marks = turn, mark_ids(turn.tokenizer)
        self._eos, self._size = turn.tokenizer.eos_id, (turn.tokenizer.vocab_size + 7) // 8
        self._bound = turn.content is not None or (turn.calls is not None and turn.calls.must)
        """Whether something has to come that is more than free text."""
        self._state: State = "thought" if turn.thinking and turn.form.prompts_thinking else "content"
        self._sub: Matcher | None = None if turn.content is None else turn.content.matcher()
        self._fresh = True  # nothing of the content has come yet
        self._made = 0
        self._written: list[int] = []
        self._ids: dict[str, str] = {}
        self._free = self._free_mask()

    @property
    def done(self) -> bool:
        """Whether the turn is whole."""
        if self._state == "content" and self._sub is not None:
            return self._sub.done
        return self._state == "closed"

    def allowed(self) -> bytes | None:
        """A bit a token; None: everything."""
        if self._state == "thought":
            return self._thought_mask()
        if self._state == "content":
            return self._content_mask()
        if self._state in ("id", "arguments"):
            closing = CALL_ARGUMENTS if self._state == "id" else CALL_END
            return self._closed_by(self._marks[closing])
        if self._state == "section":
            return self._only(CALL_BEGIN)
        assert self._turn.calls is not None
        more = self._turn.calls.several and self._made < MOST_CALLS
        return self._only(CALLS_END, CALL_BEGIN) if more else self._only(CALLS_END)

    def take(self, token: int) -> None:
        """The turn goes on with `token`."""
        marks, state = self._marks, self._state
        if state in ("thought", "content") and self._turn.calls is not None:
            if token == marks.get(CALLS_BEGIN):
                self._state = "section"
                return
            if token == marks.get(CALL_BEGIN) and not self._bound:
                self._open_call()
                return
        if state == "thought":
            if token == marks.get(THINK_END):
                self._state = "content"
        elif state == "content":
            if self._fresh and token == marks.get(THINK):
                self._state = "thought"
            elif self._sub is not None:
                self._sub.take(token)
            self._fresh = False
        elif token == marks.get(CALL_BEGIN):
            self._open_call()
        elif token == marks.get(CALL_ARGUMENTS):
            self._open_arguments()
        elif token == marks.get(CALL_END):
            self._state, self._made = "between", self._made + 1
        elif token == marks.get(CALLS_END):
            self._state = "closed"
        elif self._sub is not None:
            self._sub.take(token)
            self._written.append(token)

    def _open_call(self) -> None:
        calls = self._turn.calls
        assert calls is not None
        count = self._made + (0 if self._turn.form.own_ids else calls.before)
        self._ids = {call_id(name, count): name for name in calls.functions}
        self._state, self._written = "id", []
        self._sub = self._turn.choose(list(self._ids)).matcher()

    def _open_arguments(self) -> None:
        assert self._turn.calls is not None
        name = self._ids[self._turn.tokenizer.decode(self._written)]
        self._state, self._sub = "arguments", self._turn.calls.functions[name].matcher()

    def _thought_mask(self) -> bytes | None:
        if not self._bound:
            return self._free
        return self._without(*TURN_MARKS, *CALL_MARKS, eos=False)

    def _content_mask(self) -> bytes | None:
        calls, starts = self._turn.calls, []
        if self._fresh and self._turn.form.thinks and not self._turn.form.prompts_thinking:
            starts.append(THINK)
        if calls is not None and (calls.must or (self._fresh and self._sub is not None)):
            starts.append(CALLS_BEGIN)
        if calls is not None and calls.must:
            return self._only(*starts)
        if self._sub is None:
            return self._free
        mask = bytearray(self._sub.allowed() or self._all())
        for name in starts:
            _set(mask, self._marks[name], True)
        return bytes(mask)

    def _free_mask(self) -> bytes | None:
        return None if self._turn.calls is not None else self._without(*CALL_MARKS, eos=True)

    def _closed_by(self, mark: int) -> bytes:
        """What the inner grammar allows, its end being a mark."""
        assert self._sub is not None
        if self._sub.done:
            mask = bytearray(self._size)
            _set(mask, mark, True)
            return bytes(mask)
        mask = bytearray(self._sub.allowed() or self._all())
        may_end = bool(mask[self._eos >> 3] >> (self._eos & 7) & 1)
        _set(mask, self._eos, False)
        _set(mask, mark, may_end)
        return bytes(mask)

    def _only(self, *names: str) -> bytes:
        mask = bytearray(self._size)
        for name in names:
            _set(mask, self._marks[name], True)
        return bytes(mask)

    def _without(self, *names: str, eos: bool) -> bytes:
        mask = bytearray(self._all())
        for name in names:
            if name in self._marks:
                _set(mask, self._marks[name], False)
        _set(mask, self._eos, eos)
        return bytes(mask)

    def _all(self) -> bytes:
        return b"\xff" * self._size


def _set(mask: bytearray, token: int, on: bool) -> None:
    if on:
        mask[token >> 3] |= 1 << (token & 7)
    else:
        mask[token >> 3] &= ~(1 << (token & 7)) & 0xFF
