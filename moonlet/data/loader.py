"""Batches of token sequences, as a pure function of the step.

The token stream is cut every T tokens; sequence i is

    inputs = tokens[iT : iT + T]        targets = tokens[iT + 1 : iT + T + 1]

so each token but the first is a target exactly once an epoch (the last few, too few for a sequence, never are).
Documents are packed: a sequence may end in the middle of one, and [BOS] tells where the next begins. With `align` a
sequence also begins at a document, at the price of reading the beginning of a cut one twice.

The global order is one endless line of positions: position p is the sequence permute(p mod n) of epoch p // n, so
epochs flow into each other when the batch does not divide them. Step s takes positions sB .. sB + B - 1, of which each
rank takes its contiguous share; hence the order does not depend on the number of ranks, and the state is two integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moonlet.data.shuffle import permute
from moonlet.data.stream import TokenStream

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]


class Batches(Protocol):
    """What training reads: batches by their step, whatever was read before."""

    batch_size: int

    def batch(self, step: int) -> Batch:
        """Inputs and targets, int64 [B, T]; a target of -100 is not trained on."""
        ...


class Loader:
    """Shuffled batches from a token stream; an endless iterator that seeks.

    Args:
        tokens: the stream.
        seq_len: T, tokens a sequence.
        batch_size: B, sequences a step over all ranks.
        seed: of the shuffle.
        rank: which share of each step this loader reads.
        world_size: number of shares; divides `batch_size`.
        align: begin each sequence with a document wherever one fits (`TokenStream.aligned_starts`), not every T tokens.

    Raises:
        ValueError: the stream is too short for one sequence, `world_size` does not divide `batch_size`, or a number is
            out of range; the message has both numbers.
    """

    def __init__(
        self,
        tokens: TokenStream,
        *,
        seq_len: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        align: bool = False,
    ) -> None:
        if seq_len < 1 or batch_size < 1 or world_size < 1:
            raise ValueError(f"seq_len {seq_len}, batch_size {batch_size} and world_size {world_size} must be above 0")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not among the {world_size} ranks 0..{world_size - 1}")
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} is not divisible by world_size {world_size}")
        if len(tokens) < seq_len + 1:
            raise ValueError(
                f"{len(tokens)} tokens are too few for one sequence of seq_len {seq_len} (it reads {seq_len + 1}); "
                f"give more text or a smaller seq_len"
            )
        self.seq_len = seq_len
        self.batch_size = batch_size
        self._starts = tokens.aligned_starts(seq_len) if align else None
        self.n_sequences = (len(tokens) - 1) // seq_len if self._starts is None else len(self._starts)
        self._tokens = tokens
        self._seed = seed
        self._position = 0
        self._local = batch_size // world_size
        self._first = rank * self._local

    def batch(self, step: int) -> Batch:
        """The batch of one step, whatever was read before.

        Args:
            step: 0, 1, 2, ...

        Returns:
            inputs [B / world_size, T] and targets [B / world_size, T], int64.
        """
        if step < 0:
            raise ValueError(f"step {step} is below 0")
        return self._read(step * self.batch_size)

    def epoch_of(self, step: int) -> int:
        """The epoch of the first sequence of a step, from 0."""
        return step * self.batch_size // self.n_sequences

    def state(self) -> dict[str, int]:
        """Seed and position (sequences consumed by all ranks): all there is to resume from."""
        return {"seed": self._seed, "position": self._position}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Go on where `state()` was taken, by a loader of any number of ranks and any batch size.

        Raises:
            ValueError: the state is not one.
        """
        seed, position = state.get("seed"), state.get("position")
        if not isinstance(seed, int) or not isinstance(position, int) or position < 0:
            raise ValueError(f"loader state {dict(state)!r} needs an integer seed and a position of at least 0")
        self._seed, self._position = seed, position

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch; never ends."""
        batch = self._read(self._position)
        self._position += self.batch_size
        return batch

    def sequences(self, position: int, count: int) -> NDArray[np.int64]:
        """Which sequences [count] lie at `position`, `position + 1`, ... of the endless line."""
        positions = np.arange(position, position + count, dtype=np.int64)
        epochs, index = np.divmod(positions, self.n_sequences)
        chosen = np.empty(count, dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            chosen[here] = permute(index[here], self.n_sequences, self._seed, epoch)
        return chosen

    def _read(self, position: int) -> Batch:
        T = self.seq_len
        chosen = self.sequences(position + self._first, self._local)
        starts = chosen * T if self._starts is None else self._starts[chosen]  # (B,)
        block = np.stack([self._tokens.read(start, start + T + 1) for start in starts.tolist()])  # (B, T+1)
        block = block.astype(np.int64)
        return np.ascontiguousarray(block[:, :-1]), np.ascontiguousarray(block[:, 1:])  # (B, T), (B, T)
