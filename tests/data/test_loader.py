"""The loader: every sequence once an epoch, any step at once, the same order for any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonlet.data import Loader, TokenStream
from moonlet.data.shuffle import permute


def stream(length: int, shard: int = 37) -> TokenStream:
    tokens = np.arange(length, dtype=np.uint32)
    return TokenStream(np.split(tokens, range(shard, length, shard)))


def first_tokens(loader: Loader, steps: range) -> list[int]:
    """The first input token of each sequence, which names the sequence in these streams."""
    return [int(token) for step in steps for token in loader.batch(step)[0][:, 0]]


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 500), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 10**12))
def test_permutation_hits_every_index_once(n: int, seed: int, epoch: int) -> None:
    assert sorted(permute(np.arange(n), n, seed, epoch).tolist()) == list(range(n))


def test_permutation_of_one_index_needs_no_other() -> None:
    n = 10**12 + 39
    index = np.array([0, 1, n // 2, n - 1])
    together = permute(index, n, 3, 5)
    assert [int(permute(index[i : i + 1], n, 3, 5)[0]) for i in range(4)] == together.tolist()
    assert together.max() < n


def test_permutation_is_frozen() -> None:
    """These numbers may never change: a run resumed by a later version must read on in the same order."""
    assert permute(np.arange(10), 10, seed=0, epoch=0).tolist() == [9, 3, 4, 5, 7, 6, 1, 8, 0, 2]
    assert permute(np.arange(3), 10**9, seed=-1, epoch=7).tolist() == [624290280, 476594834, 959568555]


def test_permutation_looks_random() -> None:
    """Where each index goes is uniform over seeds, and neighbours are not kept together."""
    n, seeds = 8, 4000
    sent = np.stack([permute(np.arange(n), n, seed, 0) for seed in range(seeds)])
    for index in range(n):
        counts = np.bincount(sent[:, index], minlength=n)
        chi_square = float(((counts - seeds / n) ** 2 / (seeds / n)).sum())
        assert chi_square < 30, (index, counts)  # 7 degrees of freedom: p = 1e-4
    large = permute(np.arange(10_000), 10_000, 1, 0)
    assert abs(np.corrcoef(np.arange(10_000), large)[0, 1]) < 0.04
    assert np.mean(np.abs(np.diff(large)) <= 1) < 0.002


@settings(max_examples=100, deadline=None)
@given(
    length=st.integers(2, 400),
    seq_len=st.integers(1, 20),
    local=st.integers(1, 5),
    world=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 9),
)
def test_ranks_together_read_each_sequence_once_an_epoch(
    length: int, seq_len: int, local: int, world: int, seed: int
) -> None:
    if length <= seq_len:
        return
    tokens, batch = stream(length), local * world
    single = Loader(tokens, seq_len=seq_len, batch_size=batch, seed=seed)
    ranks = [
        Loader(tokens, seq_len=seq_len, batch_size=batch, seed=seed, rank=rank, world_size=world)
        for rank in range(world)
    ]
    n = single.n_sequences
    assert n == (length - 1) // seq_len
    order = []
    for step in range(-(-2 * n // batch)):
        whole = single.batch(step)
        parts = [rank.batch(step) for rank in ranks]
        for side in (0, 1):
            np.testing.assert_array_equal(np.concatenate([part[side] for part in parts]), whole[side])
        order += whole[0][:, 0].tolist()
    for epoch in (order[:n], order[n : 2 * n]):
        assert sorted(epoch) == [i * seq_len for i in range(n)]


def test_targets_are_the_next_tokens_across_shards() -> None:
    loader = Loader(stream(1000, shard=10), seq_len=16, batch_size=8, seed=0)
    inputs, targets = next(loader)
    assert inputs.shape == targets.shape == (8, 16)
    assert inputs.dtype == targets.dtype == np.int64
    assert inputs.flags.c_contiguous
    assert targets.flags.c_contiguous
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(inputs - inputs[:, :1], np.broadcast_to(np.arange(16), (8, 16)))


def test_every_token_but_the_first_is_a_target_once() -> None:
    loader = Loader(stream(16 * 8 + 1), seq_len=16, batch_size=4, seed=0)
    targets = np.concatenate([loader.batch(step)[1].ravel() for step in range(2)])
    assert sorted(targets.tolist()) == list(range(1, 129))


def test_seeking_equals_iterating() -> None:
    loader = Loader(stream(500), seq_len=7, batch_size=6, seed=4)
    for step in range(40):
        inputs, targets = next(loader)
        for again, wanted in zip(loader.batch(step), (inputs, targets), strict=True):
            np.testing.assert_array_equal(again, wanted)


def test_resume_on_another_number_of_ranks_reads_on() -> None:
    tokens = stream(700)
    wanted = first_tokens(Loader(tokens, seq_len=5, batch_size=8, seed=1), range(30))
    state, read = {"seed": 1, "position": 0}, []
    for world in (2, 1, 4):
        ranks = [Loader(tokens, seq_len=5, batch_size=8, seed=99, rank=r, world_size=world) for r in range(world)]
        for rank in ranks:
            rank.load_state(state)
        for _ in range(10):
            read += np.concatenate([next(rank)[0][:, 0] for rank in ranks]).tolist()
        states = [rank.state() for rank in ranks]
        assert all(other == states[0] for other in states)
        state = states[0]
    assert read == wanted
    assert state == {"seed": 1, "position": 240}


def test_a_state_may_be_read_on_with_another_batch_size() -> None:
    loader = Loader(stream(700), seq_len=5, batch_size=4, seed=1)
    wanted = first_tokens(loader, range(9))
    next(loader)
    other = Loader(stream(700), seq_len=5, batch_size=8, seed=1)
    other.load_state(loader.state())
    assert [token for _ in range(4) for token in next(other)[0][:, 0].tolist()] == wanted[4:36]


def test_epochs_and_seeds_have_their_own_order() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        loader = Loader(stream(401), seq_len=4, batch_size=10, seed=seed)
        return tuple(first_tokens(loader, range(10 * epoch, 10 * epoch + 10)))

    orders = {order(seed, epoch) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_epoch_of_a_step() -> None:
    loader = Loader(stream(41), seq_len=4, batch_size=4, seed=0)
    assert loader.n_sequences == 10
    assert [loader.epoch_of(step) for step in range(6)] == [0, 0, 0, 1, 1, 2]


def test_a_batch_may_be_larger_than_an_epoch() -> None:
    loader = Loader(stream(13), seq_len=4, batch_size=8, seed=0)
    assert np.bincount(loader.batch(0)[0][:, 0] // 4, minlength=3).min() >= 2


def test_impossible_settings_name_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"10 tokens are too few for one sequence of seq_len 10 \(it reads 11\)"):
        Loader(stream(10), seq_len=10, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="batch_size 6 is not divisible by world_size 4"):
        Loader(stream(100), seq_len=10, batch_size=6, seed=0, world_size=4)
    with pytest.raises(ValueError, match="rank 2 is not among the 2 ranks"):
        Loader(stream(100), seq_len=10, batch_size=2, seed=0, rank=2, world_size=2)
    with pytest.raises(ValueError, match="seq_len 0"):
        Loader(stream(100), seq_len=0, batch_size=2, seed=0)
    loader = Loader(stream(100), seq_len=10, batch_size=2, seed=0)
    with pytest.raises(ValueError, match="step -1"):
        loader.batch(-1)
    for bad in ({}, {"seed": 1}, {"seed": 1, "position": -1}, {"seed": 1, "position": 1.5}):
        with pytest.raises(ValueError, match="loader state"):
            loader.load_state(bad)  # type: ignore[arg-type]
