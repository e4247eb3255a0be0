"""Reading a text in pieces through states and latents together equals reading it at once, in any split, in any row."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moonlet.config.linear_attention import LinearAttention
from moonlet.model.cache import Cache, DeltaCache
from moonlet.model.kda import KDA
from moonlet.model.model import CausalLM
from tests.conftest import HYBRID

TOLERANCE = 1e-5  # fp32
FINE = 3e-6  # fp64 but for routers and rotations
# What a layer can be: three to one, KDA alone, filters of two taps beside attention with rope.
KINDS: dict[str, dict[str, Any]] = {
    "hybrid": HYBRID,
    "kda alone": HYBRID | {"num_hidden_layers": 2, "linear_attn_config": LinearAttention(8, 2, (1, 2))},
    "with rope": HYBRID | {"mla_use_nope": False, "linear_attn_config": LinearAttention(5, 3, (2, 3), 2)},
}


def text(B: int, T: int, seed: int = 0) -> Tensor:
    return torch.randint(61, (B, T), generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def memory(cache: Cache) -> list[Tensor]:
    """Every tensor the cache holds."""
    return [t for layer in cache.layers for t in vars(layer).values() if isinstance(t, Tensor)]


def poisoned(cache: Cache) -> Cache:
    """The cache, with NaN in all of its memory."""
    for tensor in memory(cache):
        tensor.fill_(float("nan"))
    return cache


def poison_row(cache: Cache, row: int) -> None:
    """Empty a row and leave NaN in its memory."""
    cache.empty_row(row)
    poisoned(cache.rows(row, row + 1))


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., CausalLM]) -> CausalLM:
    return tiny_model(**HYBRID)


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def any_model(request: pytest.FixtureRequest, tiny_model: Callable[..., CausalLM]) -> CausalLM:
    """In fp64: in fp32 any order of sums is up to 1e-5 away, as small weights make small results that are normed."""
    return tiny_model(**request.param).double()


@pytest.fixture(scope="module")
def small(tiny_model: Callable[..., CausalLM]) -> CausalLM:
    return tiny_model(
        **HYBRID | {"num_hidden_layers": 2, "n_routed_experts": 0, "linear_attn_config": LinearAttention(6, 2, (1,))}
    )


@torch.no_grad()
def test_any_split_then_decoding_equals_the_whole_in_200_cases(small: CausalLM) -> None:
    chance = random.Random(5)
    for case in range(200):
        prompt, decoded = chance.randint(1, 24), chance.randint(0, 5)
        cuts = sorted(chance.sample(range(1, prompt), min(prompt - 1, chance.randint(0, 4))))
        pieces = [b - a for a, b in zip([0, *cuts], [*cuts, prompt], strict=True)] + [1] * decoded
        tokens = text(2, prompt + decoded, case)
        cache = poisoned(small.new_cache(2, prompt + decoded))
        parts = [small(piece, cache) for piece in tokens.split(pieces, 1)]
        assert cache.lengths.tolist() == [prompt + decoded] * 2
        assert relative(torch.cat(parts, 1), small(tokens)) <= TOLERANCE, (case, pieces)


@pytest.mark.parametrize("pieces", [[40], [1] * 12, [1, 2, 3, 20, 1, 1, 9], [2, 38]], ids=str)
@torch.no_grad()
def test_a_split_equals_the_whole_with_each_kind_of_layer(any_model: CausalLM, pieces: list[int]) -> None:
    tokens = text(2, sum(pieces))
    cache = poisoned(any_model.new_cache(2, sum(pieces)))
    parts = [any_model(piece, cache) for piece in tokens.split(pieces, 1)]
    assert relative(torch.cat(parts, 1), any_model(tokens)) <= FINE


@pytest.mark.parametrize("lengths", [[0, 7], [5, 0, 12, 1], [0, 0, 3], [2, 9, 9]], ids=str)
@pytest.mark.parametrize("pieces", [[1, 1, 1], [3, 1, 10], [12, 2]], ids=str)
@torch.no_grad()
def test_rows_of_different_lengths_equal_each_row_alone(
    any_model: CausalLM, lengths: list[int], pieces: list[int]
) -> None:
    B, more = len(lengths), sum(pieces)
    tokens = text(B, max(lengths) + more)
    cache = poisoned(any_model.new_cache(B, max(lengths) + more))
    for row, n in enumerate(lengths):
        if n:
            any_model(tokens[row : row + 1, :n], cache.rows(row, row + 1))
    done = 0
    for piece in pieces:
        new = torch.stack([tokens[row, n + done : n + done + piece] for row, n in enumerate(lengths)])
        logits = any_model(new, cache)
        for row, n in enumerate(lengths):
            alone = any_model(tokens[row : row + 1, : n + done + piece])[0, n + done :]
            assert relative(logits[row], alone) <= FINE
        done += piece


@torch.no_grad()
def test_a_reused_row_begins_from_zeros_and_leaves_the_others_alone(any_model: CausalLM) -> None:
    old, new = text(3, 30), text(1, 20, seed=5)
    cache = any_model.new_cache(3, 40)
    any_model(old, cache)
    poison_row(cache, 1)
    row = cache.rows(1, 2)
    parts = [any_model(piece, row) for piece in new.split([2, 1, 17], 1)]
    assert relative(torch.cat(parts, 1), any_model(new)) <= FINE
    more = text(3, 4, seed=7)
    logits = any_model(more, cache)
    for r, known in enumerate((old[0], new[0], old[2])):
        assert relative(logits[r], any_model(torch.cat((known, more[r]))[None])[0, -4:]) <= FINE


@pytest.mark.parametrize("T", [1, 3, 12])
@torch.no_grad()
def test_a_poisoned_row_of_length_zero_reads_together_with_longer_ones(any_model: CausalLM, T: int) -> None:
    old, new = text(3, 11), text(3, T, seed=5)
    cache = any_model.new_cache(3, 40)
    any_model(old, cache)
    poison_row(cache, 1)
    logits = any_model(new, cache)
    assert relative(logits[1], any_model(new[1:2])[0]) <= FINE
    for r in (0, 2):
        assert relative(logits[r], any_model(torch.cat((old[r], new[r]))[None])[0, 11:]) <= FINE


@torch.no_grad()
def test_a_forward_that_fails_leaves_the_cache_as_it_was(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = text(2, 25)
    cache = model.new_cache(2, 40)
    model(tokens[:, :13], cache)

    def broken(*_: object) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model.model.layers[2], "forward", broken)
        with pytest.raises(KeyboardInterrupt):
            model(tokens[:, 13:16], cache)
    assert cache.lengths.tolist() == [13, 13]
    assert relative(model(tokens[:, 13:], cache), model(tokens)[:, 13:]) <= TOLERANCE


@torch.no_grad()
def test_kept_rows_go_on_as_if_alone_and_are_copies(any_model: CausalLM) -> None:
    lengths, tokens = [5, 12, 8], text(3, 16)
    cache = poisoned(any_model.new_cache(3, 16))
    for row, n in enumerate(lengths):
        any_model(tokens[row : row + 1, :n], cache.rows(row, row + 1))
    kept, before = cache.keep([2, 0]), [t.clone() for t in memory(cache)]
    logits = any_model(torch.stack((tokens[2, 8:11], tokens[0, 5:8])), kept)
    for i, (row, n) in enumerate(((2, 8), (0, 5))):
        assert relative(logits[i], any_model(tokens[row : row + 1, : n + 3])[0, n:]) <= FINE
    assert all(torch.equal(a.nan_to_num(9.0), b.nan_to_num(9.0)) for a, b in zip(before, memory(cache), strict=True))


def test_the_bytes_of_a_state_do_not_depend_on_the_length(model: CausalLM) -> None:
    a_state, an_input, a_latent = 3 * 6 * 6 * 4, 3 * 3 * 18 * 4, (24 + 8) * 4
    for max_len in (1, 100, 512):
        assert model.new_cache(2, max_len).nbytes == 2 * (3 * (a_state + an_input) + max_len * a_latent)


def test_states_are_fp32_and_inputs_in_the_compute_dtype(tiny_model: Callable[..., CausalLM]) -> None:
    model = tiny_model(**HYBRID)
    model.compute_dtype = torch.bfloat16
    layer = model.new_cache(2, 9).layers[0]
    assert isinstance(layer, DeltaCache)
    assert (layer.state.dtype, layer.inputs.dtype) == (torch.float32, torch.bfloat16)
    assert (layer.state.shape, layer.inputs.shape) == ((2, 3, 6, 6), (2, 3, 54))


@torch.no_grad()
def test_the_memory_stays_where_it_is(model: CausalLM) -> None:
    cache = model.new_cache(2, 40)
    places = [t.data_ptr() for t in memory(cache)]
    for piece in text(2, 30).split([5, 1, 1, 20, 3], 1):
        model(piece, cache)
    assert [t.data_ptr() for t in memory(cache)] == places
    # And what a forward put aside is let go of.
    assert all(layer._aside is None for layer in cache.layers if isinstance(layer, DeltaCache))


def test_states_keep_no_graph(model: CausalLM) -> None:
    cache = model.new_cache(1, 10)
    kda = model.model.layers[0].self_attn
    assert isinstance(kda, KDA)
    layer = cache.layers[0]
    assert isinstance(layer, DeltaCache)
    kda(torch.randn(1, 4, 40), None, 0, layer)
    layer.settle()
    assert not layer.state.requires_grad
    assert not layer.inputs.requires_grad


@torch.no_grad()
def test_bf16_through_the_cache_is_near_bf16_at_once(tiny_model: Callable[..., CausalLM]) -> None:
    model = tiny_model(**HYBRID, n_routed_experts=0).bfloat16()
    tokens = text(2, 30)
    cache = poisoned(model.new_cache(2, 30))
    parts = torch.cat([model(piece, cache) for piece in tokens.split([7, 1, 1, 21], 1)], 1).float()
    whole = model(tokens).float()
    assert (parts - whole).norm() <= 0.05 * whole.norm()
