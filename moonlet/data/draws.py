"""Random numbers that are a function of where they are used: seed, split, sequence, and place in the sequence.

    number(seed, split, p, place) = mix(start(seed, split, p) + place golden)

Each sequence has its own splitmix64 stream (Steele et al. 2014), started at a mix of its position p. Nothing is
replayed to reach one, and a sequence is the same in whatever batch it is drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moonlet.data.corpus import SPLITS, check_split
from moonlet.data.shuffle import GOLDEN, mix, mix_one

Ints = NDArray[np.int64]


class Draws:
    """The random numbers of B sequences; each call takes the next places of all of them.

    Args:
        seed: any integer (taken modulo 2^64).
        split: "train" or "valid"; they share no stream.
        positions: int64 [B], each at least 0.
    """

    def __init__(self, seed: int, split: str, positions: Ints) -> None:
        check_split(split)
        key = mix_one(mix_one(seed % 2**64) + 1 + SPLITS.index(split))
        self._starts = mix(mix(positions.astype(np.uint64) * np.uint64(GOLDEN)) ^ np.uint64(key))[:, None]
        self._used = 0

    def words(self, count: int) -> NDArray[np.uint64]:
        """64 random bits each, [B, count]."""
        places = np.arange(self._used + 1, self._used + count + 1, dtype=np.uint64)
        self._used += count
        return mix(self._starts + places * np.uint64(GOLDEN))

    def below(self, count: int, limit: int) -> Ints:
        """Uniform integers in 0 .. limit - 1, [B, count]."""
        # The upper half of the bits, scaled: no number is likelier than another by more than limit / 2^32.
        return ((self.words(count) >> np.uint64(32)) * np.uint64(limit) >> np.uint64(32)).astype(np.int64)

    def distinct(self, count: int, limit: int) -> Ints:
        """Integers in 0 .. limit - 1 in random order, no two of a row equal, [B, count]."""
        return self.words(limit).argsort(axis=1, kind="stable")[:, :count]
