"""Ids in, text out, one id at a time: what a chat window needs.

    decode(ids) = push(ids[0]) + push(ids[1]) + ... + finish()

For kinds that spell bytes this is UTF-8 read piece by piece: half a character waits for its other half. For kinds whose
text depends on the neighbours (spaces and capitals of a word-level vocabulary, the first space of SentencePiece) the
detokenizer is also told what came before: the text of a continuation is the text that goes on after the prompt.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol


class Detokenizer(Protocol):
    """The text of one growing list of ids. `Tokenizer.detokenizer(before, ...)` makes one."""

    def push(self, index: int) -> str:
        """Add an id; return the text that is now certain, often empty.

        Raises:
            ValueError: the id is outside [0, vocab_size).
        """
        ...

    def finish(self) -> str:
        """No id follows: return what was held back. Bytes that never became a character are U+FFFD."""
        ...


class BytesDetokenizer:
    """For kinds where every id has its own bytes, whatever stands around it.

    Args:
        spell: the bytes of an id; raises ValueError for one outside the vocabulary.
        skip: ids that give no text.
    """

    def __init__(self, spell: Callable[[Sequence[int]], bytes], skip: frozenset[int] = frozenset()) -> None:
        self._spell = spell
        self._skip = skip
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, index: int) -> str:
        """Add an id; return the characters it completes."""
        return "" if index in self._skip else self._decoder.decode(self._spell([index]))

    def finish(self) -> str:
        """U+FFFD for bytes that never became a character."""
        return self._decoder.decode(b"", final=True)
