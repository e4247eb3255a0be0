"""Tokens in, text out, piece by piece: never half a character, never the beginning of a stop string.

The pieces joined are the tokenizer's decoding of all tokens, special tokens left out, up to the first stop string.
"""

from __future__ import annotations

from collections.abc import Sequence

from moonlet.text import Tokenizer


class StopFinder:
    """Passes text on up to the first of some stop strings; what may be the beginning of one waits."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stopped = False
        """Whether one was met; nothing comes after it."""
        self._stop = tuple(stop)
        self._held = ""  # a suffix that may turn out to begin a stop string

    def push(self, new: str) -> str:
        """Add text; return what is now certain."""
        if self.stopped or not self._stop:
            return "" if self.stopped else new
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        hold = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def finish(self) -> str:
        """No text follows: return what was held back."""
        rest, self._held = self._held, ""
        return rest


class TextStream:
    """The text of one growing list of tokens.

    Args:
        before: the prompt's tokens. Where spaces and capitals depend on the neighbours, the text goes on after them.
        skip_special: whether special tokens are left out.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), before: Sequence[int] = (), skip_special: bool = True
    ) -> None:
        self._finder = StopFinder(stop)
        self._detokenizer = tokenizer.detokenizer(before, skip_special=skip_special)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met; nothing comes after it."""
        return self._finder.stopped

    def push(self, token: int) -> str:
        """Add a token; return the text that is now certain, often empty."""
        return "" if self.stopped else self._finder.push(self._detokenizer.push(token))

    def finish(self) -> str:
        """No token follows: return what was held back."""
        return "" if self.stopped else self._finder.push(self._detokenizer.finish()) + self._finder.finish()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
