"""A seeded permutation of 0 .. n - 1 that is computed one index at a time, in constant memory.

A Feistel network (Luby & Rackoff 1988) is a bijection whatever its round function F:

    (left, right) -> (right, left xor F_key(right))

on 2h bits, with 4^h the first power of four that is at least n. Results at or beyond n are sent through again until
they fall below it ("cycle walking", Black & Rogaway 2002), which keeps it a bijection on 0 .. n - 1 and takes fewer
than four passes on average. F is the finaliser of splitmix64 (Steele et al. 2014).

Chosen over a stored permutation because a loader that seeks to any step must not sort, hold, or replay anything; and
over numpy's generators because integer arithmetic alone stays the same in every version of numpy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 6


def permute(index: NDArray[np.int64], n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where the permutation of `seed` and `epoch` sends each index.

    Args:
        index: [k] values in [0, n).
        n: size of the permutation, 1 .. 2^62.
        seed: any integer (taken modulo 2^64).
        epoch: any integer >= 0; each has its own permutation.

    Returns:
        [k] values in [0, n).
    """
    assert 0 < n <= 2**62, n
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = _keys(seed, epoch)
    value = index.astype(np.uint64)
    outside = np.arange(len(value))
    while len(outside):
        value[outside] = _feistel(value[outside], half, keys)
        outside = outside[value[outside] >= n]
    return value.astype(np.int64)


def _feistel(value: NDArray[np.uint64], half: int, keys: list[int]) -> NDArray[np.uint64]:
    shift, low = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = value >> shift, value & low
    for key in keys:
        # The top bits of the mix are the better ones, hence the shift.
        left, right = right, left ^ (mix(right ^ np.uint64(key)) >> np.uint64(64 - half))
    return (left << shift) | right


def mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser; arrays of uint64 wrap around silently, as it wants."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _keys(seed: int, epoch: int) -> list[int]:
    """One 64-bit key a round, from a splitmix64 sequence started at a mix of seed and epoch."""
    state = mix_one(mix_one(seed & _MASK) + epoch)
    return [mix_one(state + turn * GOLDEN) for turn in range(1, _ROUNDS + 1)]


def mix_one(value: int) -> int:
    """`mix` of one integer, taken modulo 2^64."""
    # The constant keeps 0 from being a fixed point.
    return int(mix(np.array([(value + GOLDEN) & _MASK], dtype=np.uint64))[0])
