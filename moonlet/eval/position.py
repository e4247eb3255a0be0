"""Loss by position: how much what was read before helps.

    loss(t) = mean over texts of -log p(token t | tokens 0 .. t - 1)        [nats a token]

Position t counts the tokens read before the predicted one, [BOS] included, from 1. Either each document is read from
its own beginning, or (packed) windows of `context` tokens are cut straight through a stream of documents, as a model
is trained that sees its packed neighbours; the latter fills late positions however short the documents are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from moonlet.model.model import CausalLM
from moonlet.text.tokenizer import Tokenizer

# Tokens a forward pass.
_BATCH_TOKENS = 8192


class Stream(Protocol):
    """What is read packed: moonlet.data.stream.TokenStream, for one."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Any:
        """Tokens start .. stop - 1, an integer array."""
        ...


@dataclass(frozen=True)
class PositionLosses:
    """nats, counts: fp64 [context], of position 1, 2, ...: the sum of losses and the tokens they are of.
    bytes: fp64 [context], UTF-8 bytes of these tokens; zeros where they are not known."""

    nats: Tensor
    counts: Tensor
    bytes: Tensor

    @property
    def mean(self) -> Tensor:
        """fp64 [context], nats a token; NaN where there was no token."""
        return self.nats / self.counts

    def buckets(self, edges: Sequence[int] | None = None) -> list[Bucket]:
        """Sums between edges.

        Args:
            edges: rising positions; bucket i holds those above edges[i] and up to edges[i + 1]. None: 0, 16, 32, 64 ...

        Raises:
            ValueError: edges that do not rise from at least 0, or fewer than two.
        """
        context = len(self.nats)
        chosen = list(edges) if edges is not None else doubling(context)
        if len(chosen) < 2 or chosen[0] < 0 or any(a >= b for a, b in pairwise(chosen)):
            raise ValueError(f"edges are {chosen}; give two or more rising positions from 0 on, e.g. 0,64,256,1024")
        out = []
        for low, high in pairwise(chosen):
            nats, counts, size = (float(v[low:high].sum()) for v in (self.nats, self.counts, self.bytes))
            if counts:
                out.append(Bucket(low + 1, min(high, context), int(counts), nats, size))
        return out


@dataclass(frozen=True)
class Bucket:
    """Tokens at positions first .. last, their loss in nats, and their bytes (0: not known)."""

    first: int
    last: int
    tokens: int
    nats: float
    bytes: float

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float | None:
        """None where the bytes are not known."""
        return self.nats / math.log(2) / self.bytes if self.bytes else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "first": self.first,
            "last": self.last,
            "tokens": self.tokens,
            "loss": self.loss,
            "bits_per_byte": self.bits_per_byte,
        }


def doubling(context: int, first: int = 16) -> list[int]:
    """0, 16, 32, 64, ... up to `context`."""
    edges = [0]
    while edges[-1] < context:
        edges.append(min(context, max(first, 2 * edges[-1])))
    return edges


def by_position(
    model: CausalLM,
    documents: Iterable[tuple[Sequence[int], int]],
    context: int,
    edges: Sequence[int] | None = None,
    token_bytes: Callable[[Sequence[int]], Sequence[float]] | None = None,
) -> list[Bucket]:
    """Loss and bits per byte of documents by buckets of position.

    Args:
        documents: token ids with [BOS] and [EOS], and the UTF-8 bytes of the text, as `bits.measure` takes them; what
            is longer than `context` is read up to there.
        edges: as in `PositionLosses.buckets`.
        token_bytes: the bytes of each of some ids; None spreads a document's bytes evenly over its tokens.

    Raises:
        ValueError: no documents, an impossible context or impossible edges.
    """
    return document_losses(model, documents, context, token_bytes).buckets(edges)


def document_losses(
    model: CausalLM,
    documents: Iterable[tuple[Sequence[int], int]],
    context: int,
    token_bytes: Callable[[Sequence[int]], Sequence[float]] | None = None,
) -> PositionLosses:
    """As `by_position`, position by position."""

    def rows() -> Iterator[tuple[Sequence[int], Sequence[float]]]:
        for ids, size in documents:
            sizes = token_bytes(ids[1:]) if token_bytes else [size / (len(ids) - 1)] * (len(ids) - 1)
            yield ids[: context + 1], sizes[:context]

    return _losses(model, rows(), context)


def position_losses(
    model: CausalLM,
    ids_stream: Stream,
    context: int,
    tokens: int = 0,
    token_bytes: Callable[[Sequence[int]], Sequence[float]] | None = None,
) -> PositionLosses:
    """Loss by position of packed text: windows of `context` inputs, one after another, each predicting the next token.

    Args:
        ids_stream: as `moonlet.data.dataset.Dataset.tokens` gives it.
        tokens: read about so many, windows taken evenly from the whole stream; 0: all.
        token_bytes: as in `by_position`; None: no bits per byte.

    Raises:
        ValueError: an impossible context, or a stream shorter than one window.
    """
    windows = (len(ids_stream) - 1) // context if context > 0 else 0
    if context > 0 and windows < 1:
        raise ValueError(
            f"the stream has {len(ids_stream)} tokens, and a window of context {context} takes {context + 1}: "
            "lower the context"
        )
    every = max(1, windows * context // tokens) if tokens else 1

    def rows() -> Iterator[tuple[Sequence[int], Sequence[float]]]:
        for window in range(0, windows, every):
            ids = [int(i) for i in ids_stream.read(window * context, (window + 1) * context + 1)]
            yield ids, token_bytes(ids[1:]) if token_bytes else [0.0] * context

    return _losses(model, rows(), context)


def exact_bytes(tokenizer: Tokenizer) -> Callable[[Sequence[int]], Sequence[float]] | None:
    """The bytes of each token, where the tokenizer loses none; a special token has none."""
    if not tokenizer.lossless:
        return None
    special = set(tokenizer.specials.values())
    known: dict[int, float] = {}

    def sizes(ids: Sequence[int]) -> list[float]:
        for i in set(ids) - known.keys():
            known[i] = 0.0 if i in special else float(len(tokenizer.decode_bytes([i])))
        return [known[i] for i in ids]

    return sizes


def _losses(model: CausalLM, rows: Iterable[tuple[Sequence[int], Sequence[float]]], context: int) -> PositionLosses:
    limit = model.config.context_limit
    if not 1 <= context <= limit:
        raise ValueError(f"context is {context}; it must lie in 1..{limit}, the model's max_position_embeddings")
    sums = torch.zeros(3, context, dtype=torch.float64)  # nats, counts, bytes
    was_training = model.training
    model.eval()
    try:
        source = iter(rows)
        # Enough rows at once that sorting by length leaves little padding.
        while chunk := sorted(islice(source, 512), key=lambda row: len(row[0])):
            while chunk:
                batch = max(1, _BATCH_TOKENS // len(chunk[-1][0]))
                _add(model, chunk[-batch:], sums)
                del chunk[-batch:]
    finally:
        model.train(was_training)
    if not sums[1].any():
        raise ValueError("there is no text to evaluate")
    return PositionLosses(*sums)


def _add(model: CausalLM, rows: Sequence[tuple[Sequence[int], Sequence[float]]], sums: Tensor) -> None:
    """Add one batch, padded on the right, to sums fp64 [3, context]."""
    width = max(len(ids) for ids, _ in rows) - 1
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    targets = torch.full((len(rows), width), -100, dtype=torch.int64)
    for row, (ids, sizes) in enumerate(rows):
        tokens[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[row, : len(ids) - 1] = torch.tensor(ids[1:])
        sums[2, : len(ids) - 1] += torch.tensor(sizes, dtype=torch.float64)
    losses = model.token_losses(tokens.to(model.device), targets.to(model.device))  # (B, T)
    sums[0, :width] += losses.double().sum(0).cpu()
    sums[1, :width] += (targets != -100).sum(0)
