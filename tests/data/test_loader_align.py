"""Aligned sequences: each begins with a document wherever one fits, and no token loses its beginning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.data.loader import Loader
from moonlet.data.stream import TokenStream

BOS = 0


def stream(lengths: list[int]) -> TokenStream:
    offsets = np.cumsum([0, *lengths]).astype(np.uint64)
    tokens = np.concatenate([np.r_[BOS, np.arange(1, n)] for n in lengths]).astype(np.uint16)
    return TokenStream([tokens], offsets)


@given(st.lists(st.integers(1, 40), min_size=3, max_size=40), st.integers(8, 50))
def test_sequences_begin_with_documents_and_cover_all_but_the_end(lengths: list[int], seq_len: int) -> None:
    tokens = stream(lengths)
    starts = tokens.aligned_starts(seq_len)
    begins = set(np.cumsum([0, *lengths]).tolist())
    covered: set[int] = set()
    for start in starts.tolist():
        # In the middle of a document only when a whole sequence of that same document came before.
        if start not in begins:
            assert start - seq_len in starts
            assert not any(start - seq_len < b <= start for b in begins)
        covered |= set(range(start, start + seq_len + 1))
    if len(starts):
        assert covered == set(range(max(covered) + 1))
        assert len(tokens) - len(covered) <= seq_len + max(lengths)


def test_documents_longer_than_a_sequence_go_on() -> None:
    assert stream([100]).aligned_starts(30).tolist() == [0, 30, 60]


def test_every_rank_reads_its_share_of_the_aligned_sequences_once_an_epoch() -> None:
    tokens = stream([5, 9, 3, 12, 7, 30, 4, 8] * 6)
    whole = Loader(tokens, seq_len=16, batch_size=4, seed=3, align=True)
    steps = -(-whole.n_sequences // 4)
    seen = [i for s in range(steps) for i in whole.sequences(s * 4, 4).tolist()][: whole.n_sequences]
    assert sorted(seen) == list(range(whole.n_sequences))
    halves = [Loader(tokens, seq_len=16, batch_size=4, seed=3, rank=r, world_size=2, align=True) for r in (0, 1)]
    for step in range(steps):
        inputs, targets = whole.batch(step)
        np.testing.assert_array_equal(np.concatenate([h.batch(step)[0] for h in halves]), inputs)
        np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
        assert (inputs[:, 0] == BOS).mean() > 0.7


def test_too_short_a_stream_is_an_error_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="6 tokens are too few"):
        Loader(stream([3, 3]), seq_len=16, batch_size=1, seed=0, align=True)
