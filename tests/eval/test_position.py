"""Loss by position: every token counted where it stands, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moonlet.eval.bits import encoded, measure
from moonlet.eval.position import (
    by_position,
    document_losses,
    doubling,
    exact_bytes,
    position_losses,
)
from moonlet.eval.texts import Packed
from moonlet.text import ByteTokenizer

TEXTS = ["a fox", "h\u00e9llo w\u00f6rld, said the hen", "x" * 70]


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model(vocab_size=272)


def test_each_position_is_the_mean_over_the_documents_that_reach_it(model: Any) -> None:
    documents = list(encoded(ByteTokenizer(), TEXTS))
    found = document_losses(model, documents, 40)
    nats, counts = torch.zeros(40, dtype=torch.float64), torch.zeros(40, dtype=torch.float64)
    for ids, _ in documents:
        row = torch.tensor([ids[:41]])
        losses = model.token_losses(row[:, :-1], row[:, 1:])[0].double()
        nats[: len(losses)] += losses
        counts[: len(losses)] += 1
    assert torch.equal(found.counts, counts)
    torch.testing.assert_close(found.mean, nats / counts, rtol=1e-5, atol=1e-5)


def test_buckets_add_up_to_the_whole_text(model: Any) -> None:
    """With room for whole documents, they are the bits per byte of `measure`, cut into pieces."""
    tokenizer = ByteTokenizer()
    whole = measure(model, encoded(tokenizer, TEXTS), 200)
    for sizes in (exact_bytes(tokenizer), None):
        buckets = by_position(model, encoded(tokenizer, TEXTS), 200, token_bytes=sizes)
        assert sum(b.tokens for b in buckets) == whole.tokens
        assert sum(b.nats for b in buckets) == pytest.approx(whole.nats, rel=1e-5)
        assert sum(b.bytes for b in buckets) == pytest.approx(whole.bytes)
    assert [(b.first, b.last) for b in buckets] == [(1, 16), (17, 32), (33, 64), (65, 128)]
    assert buckets[0].bits_per_byte == pytest.approx(buckets[0].nats / math.log(2) / buckets[0].bytes)


def test_packed_windows_go_straight_through_the_stream(model: Any) -> None:
    ids = [int(i) for i in torch.randint(0, 272, (101,), generator=torch.Generator().manual_seed(0))]
    found = position_losses(model, Packed(ids), 20)
    rows = torch.tensor([ids[20 * w : 20 * w + 21] for w in range(5)])
    expected = model.token_losses(rows[:, :-1], rows[:, 1:]).double().mean(0)
    torch.testing.assert_close(found.mean, expected, rtol=1e-5, atol=1e-5)
    assert found.counts.tolist() == [5.0] * 20
    assert position_losses(model, Packed(ids), 20, tokens=40).counts.tolist() == [3.0] * 20  # windows 0, 2, 4
    assert found.buckets()[0].bits_per_byte is None


def test_positions_no_document_reaches_have_no_loss(model: Any) -> None:
    """The first token after [BOS] stands at position 1."""
    found = document_losses(model, [([0, 33, 34], 2)], 5)
    assert found.counts.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert math.isnan(float(found.mean[4]))


def test_special_tokens_have_no_bytes_and_lossy_tokenizers_no_exact_ones() -> None:
    sizes = exact_bytes(ByteTokenizer())
    assert sizes is not None
    assert list(sizes([0, *ByteTokenizer().encode("\u00e9"), 1])) == [0.0, 1.0, 1.0, 0.0]

    class Lossy(ByteTokenizer):
        lossless = False

    assert exact_bytes(Lossy()) is None


def test_edges_double_up_to_the_context() -> None:
    assert doubling(100) == [0, 16, 32, 64, 100]
    assert doubling(7) == [0, 7]


def test_impossible_requests_are_errors(model: Any) -> None:
    with pytest.raises(ValueError, match=r"context is 513; it must lie in 1\.\.512"):
        by_position(model, [([0, 1], 1)], 513)
    with pytest.raises(ValueError, match="no text"):
        by_position(model, [], 20)
    with pytest.raises(ValueError, match="10 tokens, and a window of context 20 takes 21"):
        position_losses(model, Packed([0] * 10), 20)
    losses = document_losses(model, [([0, 1], 1)], 20)
    for edges in ([5], [5, 5], [-1, 5]):
        with pytest.raises(ValueError, match="edges are"):
            losses.buckets(edges)


def test_the_picture_is_drawn(tmp_path: Path, model: Any) -> None:
    from moonlet.plot.position import draw_positions

    buckets = by_position(model, encoded(ByteTokenizer(), TEXTS), 64)
    draw_positions({"one": buckets, "two": buckets}, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
