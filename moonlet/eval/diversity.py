"""How varied texts are, how much they repeat themselves, and how much they copy: counted in words.

    distinct-n   = different n-grams of all texts together / n-grams            (1: no two are equal)
    repetition   = n-grams that stood earlier in the same text / n-grams, n = 4 (0: nothing is said twice)
    repeated     = words in the longest span that stands twice in one text, overlaps not counted
    copied       = words in the longest span that a text shares with the training text

All but the last two fall or rise with the amount of text, so a figure means something beside that of as much real
text only: `cut_alike` makes a reference of as many texts of the same lengths. A word is a run of letters, digits and
apostrophes, without regard to capitals; punctuation counts as words do, one sign each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

ORDERS = (1, 2, 3, 4)
_REPEATED = 4  # words of an n-gram that counts as a repetition
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[^\w\s]|_")

Words = list[str]
Codes = NDArray[np.uint64]


@dataclass(frozen=True)
class Diversity:
    """Figures of some texts; spans are means over the texts and the longest of all. copied is None: not compared."""

    texts: int
    words: int
    distinct: tuple[float, ...]  # distinct-1 .. distinct-4
    repetition: float
    repeated_mean: float
    repeated_longest: int
    copied_mean: float | None = None
    copied_longest: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        figures = asdict(self)
        shares = figures.pop("distinct")
        return figures | {f"distinct_{n}": share for n, share in zip(ORDERS, shares, strict=True)}


def words(text: str) -> Words:
    """The words and signs of a text, in lower case."""
    return _WORD.findall(text.lower())


def diversity(texts: Sequence[Words], training: Iterable[str] | None = None) -> Diversity:
    """Measure texts, given as words.

    Args:
        training: documents to look for copies in, read once.

    Raises:
        ValueError: no text holds a word.
    """
    texts = [text for text in texts if text]
    if not texts:
        raise ValueError("there is no word in the texts to measure")
    repeated = [longest_repeat(text) for text in texts]
    copied = None if training is None else longest_copies(texts, training)
    return Diversity(
        texts=len(texts),
        words=sum(map(len, texts)),
        distinct=tuple(distinct(texts, n) for n in ORDERS),
        repetition=repetition(texts, _REPEATED),
        repeated_mean=sum(repeated) / len(texts),
        repeated_longest=max(repeated),
        copied_mean=None if copied is None else sum(copied) / len(texts),
        copied_longest=None if copied is None else max(copied),
    )


def cut_alike(reference: Iterable[Words], texts: Sequence[Words]) -> list[Words]:
    """The first reference texts, cut to the lengths of `texts`, longest to longest; fewer where there are fewer."""
    lengths = sorted((len(text) for text in texts), reverse=True)
    taken = sorted((text for text, _ in zip(reference, lengths, strict=False)), key=len, reverse=True)
    return [text[:length] for text, length in zip(taken, lengths, strict=False)]


def distinct(texts: Sequence[Words], n: int) -> float:
    """distinct-n; 0 where no text has n words."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(texts: Sequence[Words], n: int) -> float:
    """The share of n-grams that stood earlier in the same text; 0 where no text has n words."""
    counts = [(len(grams), len(set(grams))) for grams in (list(_grams(text, n)) for text in texts)]
    total = sum(count for count, _ in counts)
    return sum(count - different for count, different in counts) / total if total else 0.0


def longest_repeat(text: Words) -> int:
    """Words in the longest span that stands twice in `text` without overlapping itself."""

    def stands_twice(n: int) -> bool:
        first: dict[tuple[str, ...], int] = {}
        return any(at - first.setdefault(gram, at) >= n for at, gram in enumerate(_grams(text, n)))

    return _largest(stands_twice, len(text) // 2)


def longest_copies(texts: Sequence[Words], training: Iterable[str]) -> list[int]:
    """For each text the words in the longest span that stands in one of the training documents as well."""
    numbers: dict[str, int] = {"": 0}
    for text in texts:
        for word in text:
            numbers.setdefault(word, len(numbers))
    # Words that no text has are all 0, which ends every span.
    read = [np.array([numbers.get(word, 0) for word in [*words(document), ""]]) for document in training]
    source = np.concatenate(read) if read else np.zeros(1, dtype=np.int64)
    # Random codes make unequal spans collide with a chance of about 2^-64 a pair.
    codes = np.random.default_rng(0).integers(1, 2**63, len(numbers), dtype=np.uint64)
    ends = np.cumsum([len(text) + 1 for text in texts])
    spans = np.array([number for text in texts for number in (*(numbers[word] for word in text), 0)])
    source_spans, text_spans = _Spans(codes, source), _Spans(codes, spans)
    longest = [0] * len(texts)
    # A span of n + 1 words begins with one of n, so places that match no longer are dropped and few are left soon.
    for n in count(1):
        source_spans.extend()
        text_spans.extend()
        source_spans.keep_those_in(text_spans)
        text_spans.keep_those_in(source_spans)
        if not len(text_spans.starts):
            return longest
        for text in np.unique(np.searchsorted(ends, text_spans.starts, side="right")):
            longest[int(text)] = n
    raise AssertionError


class _Spans:
    """Spans of n words, n growing from 0, by where they start, with a hash of each.

    hash = sum over places of code(word) * base^place, modulo 2^64
    """

    def __init__(self, codes: Codes, numbers: NDArray[np.int64]) -> None:
        self.numbers, self.codes = numbers, codes
        self.starts = np.arange(len(numbers))
        self.hashes = np.zeros(len(numbers), dtype=np.uint64)
        self.n = 0

    def extend(self) -> None:
        """Make every span one word longer; those that run into a 0, or the end, are no more."""
        inside = self.starts + self.n < len(self.numbers)
        self._keep(inside)
        word = self.numbers[self.starts + self.n]
        self._keep(word != 0)
        factor = np.uint64(pow(0x9E3779B97F4A7C15, self.n, 2**64))
        self.hashes = self.hashes + self.codes[word[word != 0]] * factor
        self.n += 1

    def keep_those_in(self, other: _Spans) -> None:
        """Drop spans that `other` does not hold."""
        known = np.unique(other.hashes)
        if not len(known):
            return self._keep(np.zeros(len(self.starts), dtype=np.bool_))
        place = np.minimum(np.searchsorted(known, self.hashes), len(known) - 1)
        return self._keep(known[place] == self.hashes)

    def _keep(self, which: NDArray[np.bool_]) -> None:
        self.starts, self.hashes = self.starts[which], self.hashes[which]


def _grams(text: Words, n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(text[place:] for place in range(n)), strict=False)


def _largest(holds: Callable[[int], bool], limit: int) -> int:
    """The largest n up to `limit` for which `holds`, which holds for all smaller ones too."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low
