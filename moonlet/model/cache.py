"""What a model remembers of the tokens it has read: an argument of forward, never a buffer inside a module.

MLA keeps, for each position, its normed latent and the one rotated key all heads share: R + P numbers, not
2 H K. GQA keeps the rotated keys and the values of its G heads, 2 G K. KDA keeps no positions: one matrix a head and
the last inputs of its convolutions, which every further token changes.

Writing a position again is harmless, changing a state twice is not. So a forward puts a new state aside, and all layers
settle at its end, when nothing can fail any more: a forward that ends in an error leaves the cache as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor


class LayerCache(Protocol):
    """One layer's memory; how it is read and written is between it and its layer."""

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""
        ...

    def settle(self) -> None:
        """Take over what a forward has put aside."""
        ...

    def rows(self, first: int, last: int) -> Self:
        """A view of rows first .. last - 1."""
        ...

    def keep(self, rows: list[int]) -> Self:
        """Copies of these rows, in this order."""
        ...


class LatentCache:
    """One MLA layer's entries, [B, max_len, R + P]."""

    def __init__(self, entries: Tensor) -> None:
        self.entries = entries

    def append(self, new: Tensor, start: int | Tensor) -> Tensor:
        """Write `new` [B, T, R+P] behind `start` entries (int, or int64 [B]) and return all entries so far.

        Where rows differ in length the result holds the longest row's positions; shorter rows' tails are stale, and
        causal attention with the same `start` does not see them.
        """
        T = new.shape[1]
        if isinstance(start, int):
            self.entries[:, start : start + T] = new
            return self.entries[:, : start + T]
        rows = torch.arange(new.shape[0], device=new.device)[:, None]
        self.entries[rows, start[:, None] + torch.arange(T, device=new.device)] = new
        return self.entries[:, : int(start.max()) + T]

    @property
    def nbytes(self) -> int:
        return self.entries.nbytes

    def settle(self) -> None:
        """Nothing to do: positions beyond a row's length count for nothing."""

    def rows(self, first: int, last: int) -> LatentCache:
        return LatentCache(self.entries[first:last])

    def keep(self, rows: list[int]) -> LatentCache:
        return LatentCache(self.entries[rows])


class KeyValueCache:
    """One GQA layer's keys and values: `entries` [2, B, G, max_len, K], keys first.

    Each head's positions lie together, so that the positions in use are one batched matrix without a copy.
    """

    def __init__(self, entries: Tensor) -> None:
        self.entries = entries

    def append(self, new: Tensor, start: int | Tensor) -> Tensor:
        """Write `new` [2, B, G, T, K] behind `start` entries (int, or int64 [B]) and return all entries so far.

        What is said of shorter rows at `LatentCache.append` holds here.
        """
        T = new.shape[3]
        if isinstance(start, int):
            self.entries[:, :, :, start : start + T] = new
            return self.entries[:, :, :, : start + T]
        rows = torch.arange(new.shape[1], device=new.device)[:, None]
        positions = start[:, None] + torch.arange(T, device=new.device)  # (B, T)
        # Indices on both sides of a slice come first in what they select.
        self.entries[:, rows, :, positions] = new.permute(1, 3, 0, 2, 4)  # (B, T, 2, G, K)
        return self.entries[:, :, :, : int(start.max()) + T]

    @property
    def nbytes(self) -> int:
        return self.entries.nbytes

    def settle(self) -> None:
        """Nothing to do: positions beyond a row's length count for nothing."""

    def rows(self, first: int, last: int) -> KeyValueCache:
        return KeyValueCache(self.entries[:, first:last])

    def keep(self, rows: list[int]) -> KeyValueCache:
        return KeyValueCache(self.entries[:, rows])


class DeltaCache:
    """One KDA layer's memory, of the same size after any number of tokens.

    state: fp32 [B, H, K, V].
    inputs: [B, W-1, 3HK], compute dtype: the last inputs of the convolutions of q, k and v, the newest last.

    A row of length zero begins from zeros, whatever its memory holds.
    """

    def __init__(self, state: Tensor, inputs: Tensor) -> None:
        self.state, self.inputs = state, inputs
        self._aside: tuple[Tensor, Tensor] | None = None

    def read(self, start: int | Tensor) -> tuple[Tensor | None, Tensor | None]:
        """State and inputs of rows that hold `start` tokens (int, or int64 [B]); None for zeros."""
        if isinstance(start, int):
            return (self.state, self.inputs) if start else (None, None)
        empty = (start == 0)[:, None, None]  # (B, 1, 1)
        # where(), not a product: NaN times zero is NaN.
        return torch.where(empty[..., None], 0.0, self.state), torch.where(empty, 0.0, self.inputs)

    def put_aside(self, state: Tensor, inputs: Tensor) -> None:
        """Note what to hold once the forward has succeeded."""
        self._aside = state.detach(), inputs.detach()

    def settle(self) -> None:
        assert self._aside is not None, "no forward has run"
        self.state.copy_(self._aside[0])
        self.inputs.copy_(self._aside[1])
        self._aside = None

    @property
    def nbytes(self) -> int:
        return self.state.nbytes + self.inputs.nbytes

    def rows(self, first: int, last: int) -> DeltaCache:
        return DeltaCache(self.state[first:last], self.inputs[first:last])

    def keep(self, rows: list[int]) -> DeltaCache:
        return DeltaCache(self.state[rows], self.inputs[rows])


class Cache:
    """A model's memory for `batch` independent texts of up to `max_len` tokens each.

    `lengths` (int64 [B], on the CPU) counts the tokens each row holds. Reading a row of length n never touches
    entries beyond n, nor the state of a row of length 0, so a row is emptied by setting its length to zero.
    """

    def __init__(self, layers: Sequence[LayerCache], lengths: Tensor, max_len: int) -> None:
        self.layers = layers
        self.lengths = lengths
        self.max_len = max_len

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.lengths.shape[0]

    @property
    def block(self) -> int:
        """Positions that lie together: all of a row's; see `paged_cache.py` for the other case."""
        return self.max_len

    @property
    def nbytes(self) -> int:
        """Bytes the cache holds."""
        return sum(layer.nbytes for layer in self.layers)

    def start(self, device: torch.device) -> int | Tensor:
        """Tokens before the next one: an int where all rows agree, else int64 [B] on `device`."""
        lengths = self.lengths.tolist()
        return lengths[0] if min(lengths) == max(lengths) else self.lengths.to(device)

    def check_room(self, tokens: int) -> None:
        """Raise ValueError unless every row has room for `tokens` more."""
        longest = int(self.lengths.max())
        if longest + tokens > self.max_len:
            raise ValueError(
                f"the cache holds {longest} tokens and has room for {self.max_len}; {tokens} more do not fit: "
                "make it with a larger max_len"
            )

    def advance(self, tokens: int) -> None:
        """Count `tokens` more in every row."""
        self.lengths += tokens

    def settle(self, tokens: int) -> None:
        """End a forward of `tokens` more in every row: what its layers have put aside is what they hold."""
        for layer in self.layers:
            layer.settle()
        self.advance(tokens)

    def rows(self, first: int, last: int) -> Cache:
        """A view of rows first .. last - 1, sharing memory: what is written through it is written here."""
        return Cache([layer.rows(first, last) for layer in self.layers], self.lengths[first:last], self.max_len)

    def keep(self, rows: list[int]) -> Cache:
        """A new cache that holds copies of these rows, in this order."""
        return Cache([layer.keep(rows) for layer in self.layers], self.lengths[rows], self.max_len)

    def empty_row(self, row: int) -> None:
        """Forget what row `row` holds."""
        self.lengths[row] = 0
