"""Bits per byte: what a model needs to tell a text, in a unit no tokenizer can change.

    bits per byte = sum over documents of -log2 p(tokens and [EOS] | [BOS]) / UTF-8 bytes of the documents

Each document is read from its own [BOS]. One longer than `context` is read in windows that overlap by half, and every
token counts once, in the first window that holds it: it then has at least half a window before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from moonlet.model.model import CausalLM
from moonlet.text.tokenizer import Tokenizer

# Tokens a forward pass, padding included.
_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Bits:
    """The sums of an evaluation."""

    nats: float
    tokens: int  # predicted ones, [EOS] included
    bytes: int
    documents: int

    @property
    def bits_per_byte(self) -> float:
        """The figure."""
        return self.nats / math.log(2) / self.bytes

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    def figures(self) -> dict[str, float]:
        """For metrics.jsonl."""
        return {"loss": self.loss, "bits_per_byte": self.bits_per_byte, "bytes": self.bytes}


@dataclass(frozen=True)
class Window:
    """Tokens to read and how many of the first targets are not to be counted."""

    ids: Sequence[int]
    skip: int


def windows(ids: Sequence[int], context: int) -> Iterator[Window]:
    """Cut a document's tokens, [BOS] and [EOS] included, into windows of at most `context` inputs."""
    if len(ids) <= context + 1:
        yield Window(ids, 0)
        return
    stride = max(1, context // 2)
    counted = 0  # targets counted so far; target t is ids[t + 1]
    start = 0
    while counted < len(ids) - 1:
        piece = ids[start : start + context + 1]
        yield Window(piece, counted - start)
        counted = start + len(piece) - 1
        start = min(start + stride, max(0, len(ids) - 1 - context))


def measure(model: CausalLM, documents: Iterable[tuple[Sequence[int], int]], context: int) -> Bits:
    """Measure `model` on documents.

    Args:
        documents: token ids with [BOS] and [EOS], and the UTF-8 bytes of the document's text.
        context: longest stretch of tokens the model reads at once.

    Raises:
        ValueError: no documents, or a context outside 1 .. max_position_embeddings.
    """
    limit = model.config.context_limit
    if not 1 <= context <= limit:
        raise ValueError(f"context is {context}; it must lie in 1..{limit}, the model's max_position_embeddings")
    was_training = model.training
    model.eval()
    nats, tokens, size, count = 0.0, 0, 0, 0
    try:
        for chunk in _chunks(documents):
            size += sum(n for _, n in chunk)
            count += len(chunk)
            tokens += sum(len(ids) - 1 for ids, _ in chunk)
            pieces = sorted((w for ids, _ in chunk for w in windows(ids, context)), key=lambda w: len(w.ids))
            for batch in _batches(pieces):
                nats += _nats(model, batch)
    finally:
        model.train(was_training)
    if not size:
        raise ValueError("there is no text to evaluate")
    return Bits(nats, tokens, size, count)


def encoded(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[tuple[list[int], int]]:
    """Each text as `measure` wants it."""
    for text in texts:
        yield [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id], len(text.encode("utf-8"))


def _chunks(documents: Iterable[tuple[Sequence[int], int]]) -> Iterator[list[tuple[Sequence[int], int]]]:
    """Groups of documents, so that a large file is never in memory as a whole."""
    chunk: list[tuple[Sequence[int], int]] = []
    for document in documents:
        chunk.append(document)
        if len(chunk) == 1024:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _batches(pieces: Sequence[Window]) -> Iterator[list[Window]]:
    """Windows of like length together; the padding of a batch goes with its longest, the last."""
    batch: list[Window] = []
    for piece in pieces:
        if batch and (len(batch) + 1) * len(piece.ids) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _nats(model: CausalLM, batch: list[Window]) -> float:
    longest = max(len(w.ids) for w in batch) - 1
    inputs = torch.zeros(len(batch), longest, dtype=torch.int64)
    targets = torch.full((len(batch), longest), -100, dtype=torch.int64)
    for row, w in enumerate(batch):
        ids = torch.as_tensor(list(w.ids), dtype=torch.int64)
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, w.skip : len(ids) - 1] = ids[1 + w.skip :]
    losses = model.token_losses(inputs.to(model.device), targets.to(model.device))
    return float(losses.double().sum())
