"""What is asked of the batching engine, and what it answers: the words that engine, server and page share.

    Request  --Engine.submit-->  ticket        Engine.step()  -->  [Event, ...]  one or more for each live ticket

A request is token ids and settings, checked before anything is computed. An event is one token drawn, with the text
that is certain since, or an end. Nothing here knows of HTTP, and nothing of caches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from moonlet.generate.sample import SamplingParams

Finish = Literal["stop", "length", "cancelled", "error"]


class Matcher(Protocol):
    """What one text may go on with; see `grammar.py`."""

    def allowed(self) -> bytes | None:
        """A bit a token of the tokenizer, the lowest of each byte first; None: everything."""
        ...

    def take(self, token: int) -> None:
        """The text goes on with `token`, which was allowed."""
        ...

    @property
    def done(self) -> bool:
        """Whether the text is whole and nothing but an end may follow."""
        ...


class Grammar(Protocol):
    """A language that a text must be in."""

    def matcher(self) -> Matcher:
        """One that stands at the beginning."""
        ...


@dataclass(frozen=True)
class Request:
    """One text to be continued.

    Attributes:
        prompt: ids as the model shall read them, at least one; nothing is added.
        params: how tokens are drawn, and when to stop.
        ends: ids that end the text and are no part of it.
        repeat: of equal prompts with equal seeds, which one this is: each draws numbers of its own.
        grammar: what the text must be; None: anything.
        skip_special: whether special tokens are left out of the text.
    """

    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    ends: frozenset[int] = frozenset()
    repeat: int = 0
    grammar: Grammar | None = None
    skip_special: bool = True


@dataclass(frozen=True)
class Likely:
    """A token that was drawn or might have been, and the natural logarithm of its probability before temperature and
    truncation, as the OpenAI interface has it."""

    token: int
    logprob: float


@dataclass(frozen=True)
class Event:
    """What happened to one request in one step.

    Attributes:
        ticket: which request, as `submit` returned it.
        token: drawn in this step; None where the text ended without one (an end that is no part of it, a cancel).
        text: of the answer, certain since the last event; often empty.
        drawn: the token with its log-probability, where `params.logprobs` is not None.
        likely: the `params.logprobs` likeliest tokens, likeliest first.
        finish: why it ended; None while it goes on. After it no event has this ticket.
        error: what went wrong, a line, where `finish` is "error".
        reused: tokens of the prompt that were not read again, on the first event.
    """

    ticket: int
    token: int | None = None
    text: str = ""
    drawn: Likely | None = None
    likely: tuple[Likely, ...] = ()
    finish: Finish | None = None
    error: str | None = None
    reused: int = 0
