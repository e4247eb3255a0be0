"""Tokens in, text out, piece by piece: never half a character, never the beginning of a stop string.

The pieces joined are the tokenizer's decoding of all tokens, special tokens left out, up to the first stop string.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from moonlet.text import Tokenizer


class TextStream:
    """The text of one growing list of tokens."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        """Whether a stop string was met; nothing comes after it."""
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.specials.values())
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # a suffix that may turn out to begin a stop string

    def push(self, token: int) -> str:
        """Add a token; return the text that is now certain, often empty."""
        if self.stopped or token in self._special:
            return ""
        return self._release(self._decoder.decode(self._tokenizer.decode_bytes([token])))

    def finish(self) -> str:
        """No token follows: return what was held back. Bytes that never became a character are U+FFFD."""
        if self.stopped:
            return ""
        piece = self._release(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return piece if self.stopped else piece + rest

    def _release(self, new: str) -> str:
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        hold = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
