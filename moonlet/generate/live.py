"""A text that an engine is asked to continue, from its submission to its end.

    tokens   [ prompt ........................ | drawn ... ]
             [ in the cache: `length` | not yet fed ....... ]

Reading and decoding are the same thing, seen so: what is known and not in the cache is fed, and where nothing remains
the logits give the next token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from moonlet.generate.prefix import Node
from moonlet.generate.reading import Reading
from moonlet.generate.request import Request
from moonlet.generate.sampler import Sampler
from moonlet.generate.text import TextStream


@dataclass(eq=False)
class Live:
    """One text and what it holds."""

    ticket: int
    request: Request
    sampler: Sampler
    stream: TextStream
    reading: Reading
    tokens: list[int]
    """The prompt, and what was drawn."""
    slot: int = -1
    """Row of the cache; -1 while it waits and after its end."""
    blocks: list[int] = field(default_factory=list)
    length: int = 0
    """Tokens in the cache."""
    reused: int = 0
    """Tokens of the prompt that were not read again."""
    told: bool = False
    """Whether an event has said so."""
    logits: Tensor | None = None
    """[vocab_size], where all of the prompt was reused."""
    node: Node | None = None
    """The last whole block of it in the store of beginnings; None: nothing of it is stored."""
    stored: int = 0
    """Whole blocks up to that."""
    cuts: list[int] = field(default_factory=list)
    """Lengths at which reading pauses, ascending: others may begin there."""
    follows: tuple[Live, int] | None = None
    """A text that reads the same beginning, and how far: this one waits for it."""

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return self.reading.length

    @property
    def is_reading(self) -> bool:
        """Whether a part of the prompt is not in the cache."""
        return self.length < self.reading.length

    @property
    def is_ready(self) -> bool:
        """Whether all that is known of it is in the cache."""
        return self.length == len(self.tokens)
