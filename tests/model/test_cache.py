"""Reading a text in pieces through the cache equals reading it at once, in any split, in any row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moonlet.config import RopeScaling
from moonlet.model.cache import Cache
from moonlet.model.mla import ABSORB_UP_TO, MLA
from moonlet.model.model import CausalLM
from moonlet.model.rope import Rope
from tests.conftest import GQA

TOLERANCE = 1e-5
LONG = ABSORB_UP_TO + 4  # a piece this long is read in expanded form


def text(B: int, T: int, seed: int = 0) -> Tensor:
    return torch.randint(61, (B, T), generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def poisoned(cache: Cache) -> Cache:
    """The cache, with NaN wherever nothing has been written."""
    for layer in cache.layers:
        layer.entries.fill_(float("nan"))
    return cache


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., CausalLM]) -> CausalLM:
    return tiny_model()


@pytest.fixture(scope="module", params=[{}, GQA], ids=["mla", "gqa"])
def either(request: pytest.FixtureRequest, tiny_model: Callable[..., CausalLM]) -> CausalLM:
    """With each kind of cache."""
    return tiny_model(**request.param)


@given(pieces=st.lists(st.integers(1, 2 * ABSORB_UP_TO), min_size=1, max_size=6), seed=st.integers(0, 99))
@torch.no_grad()
def test_any_split_equals_the_whole(either: CausalLM, pieces: list[int], seed: int) -> None:
    model = either
    tokens = text(2, sum(pieces), seed)
    cache = poisoned(model.new_cache(2, sum(pieces) + 3))
    parts = [model(piece, cache) for piece in tokens.split(pieces, 1)]
    assert cache.lengths.tolist() == [sum(pieces)] * 2
    assert relative(torch.cat(parts, 1), model(tokens)) <= TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {"q_lora_rank": None},
        {"first_k_dense_replace": 0, "n_group": 2, "topk_group": 1},
        GQA | {"num_key_value_heads": 4, "head_dim": 16, "partial_rotary_factor": 0.5},
        GQA | {"num_key_value_heads": 1, "tie_word_embeddings": True},
    ],
)
@torch.no_grad()
def test_token_by_token_equals_the_whole(tiny_model: Callable[..., CausalLM], changes: dict[str, int | None]) -> None:
    model, tokens = tiny_model(**changes), text(2, 30)
    cache = poisoned(model.new_cache(2, 30))
    parts = [model(tokens[:, t : t + 1], cache) for t in range(30)]
    assert relative(torch.cat(parts, 1), model(tokens)) <= TOLERANCE


@given(
    lengths=st.lists(st.integers(0, 2 * ABSORB_UP_TO), min_size=2, max_size=4),
    pieces=st.lists(st.integers(1, LONG), min_size=1, max_size=3),
)
@torch.no_grad()
def test_rows_of_different_lengths_equal_each_row_alone(
    either: CausalLM, lengths: list[int], pieces: list[int]
) -> None:
    model = either
    B, more = len(lengths), sum(pieces)
    tokens = text(B, max(lengths) + more)
    cache = poisoned(model.new_cache(B, max(lengths) + more + 2))
    for row, n in enumerate(lengths):
        if n:
            model(tokens[row : row + 1, :n], cache.rows(row, row + 1))
    assert cache.lengths.tolist() == lengths
    done = 0
    for piece in pieces:
        new = torch.stack([tokens[row, n + done : n + done + piece] for row, n in enumerate(lengths)])
        logits = model(new, cache)
        for row, n in enumerate(lengths):
            alone = model(tokens[row : row + 1, : n + done + piece])[0, n + done :]
            assert relative(logits[row], alone) <= TOLERANCE
        done += piece


@pytest.mark.parametrize("T", [1, 3, LONG])
@pytest.mark.parametrize("start", [5, torch.tensor([5, 2])], ids=["int", "rows"])
@torch.no_grad()
def test_absorbed_equals_expanded(
    model: CausalLM, T: int, start: int | Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    mla = model.model.layers[1].self_attn
    assert isinstance(mla, MLA)
    x = torch.randn(2, T, 40, generator=torch.Generator().manual_seed(T))
    rotation = Rope(model.config)(start, T, x.device)
    results = []
    for absorb_up_to in (0, 10**6):
        monkeypatch.setattr("moonlet.model.mla.ABSORB_UP_TO", absorb_up_to)
        layer = model.new_cache(2, 5 + T).layers[0]
        layer.entries.copy_(torch.randn(layer.entries.shape, generator=torch.Generator().manual_seed(9)))
        results.append(mla(x, rotation, start, layer))
    assert relative(*results) <= TOLERANCE


def test_both_forms_are_taken(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    # Otherwise the tests above would compare one form with itself.
    seen = set()
    for form in ("expanded", "absorbed"):
        original = getattr(MLA, form)

        def spy(*args: object, original: Callable[..., Tensor] = original, form: str = form) -> Tensor:
            seen.add(form)
            return original(*args)

        monkeypatch.setattr(MLA, form, spy)
    for T, form in ((ABSORB_UP_TO, "absorbed"), (ABSORB_UP_TO + 1, "expanded")):
        seen.clear()
        with torch.no_grad():
            model(text(1, T), model.new_cache(1, 50))
        assert seen == {form}


@torch.no_grad()
def test_an_emptied_row_reads_a_new_text_as_a_fresh_one(either: CausalLM) -> None:
    model = either
    cache = poisoned(model.new_cache(3, 40))
    model(text(3, 30), cache)
    cache.empty_row(1)
    assert cache.lengths.tolist() == [30, 0, 30]
    new = text(1, 20, seed=5)
    row = cache.rows(1, 2)
    parts = [model(new[:, :LONG], row), model(new[:, LONG:17], row), model(new[:, 17:], row)]
    assert relative(torch.cat(parts, 1), model(new)) <= TOLERANCE
    assert cache.lengths.tolist() == [30, 20, 30]
    # And the other rows go on as if nothing had happened.
    old, more = text(3, 30), text(3, 4, seed=7)
    logits = model(more, cache)
    for r in (0, 2):
        assert relative(logits[r], model(torch.cat((old[r], more[r]))[None])[0, 30:]) <= TOLERANCE


@torch.no_grad()
def test_a_full_cache_says_both_numbers(model: CausalLM) -> None:
    cache = model.new_cache(2, 10)
    model(text(2, 7), cache)
    with pytest.raises(ValueError, match="holds 7 tokens and has room for 10; 4 more do not fit"):
        model(text(2, 4), cache)
    assert cache.lengths.tolist() == [7, 7]
    model(text(2, 3), cache)  # to the last place


@torch.no_grad()
def test_a_cache_of_other_rows_says_both_numbers(model: CausalLM) -> None:
    with pytest.raises(ValueError, match="tokens have 3 rows and the cache 2"):
        model(text(3, 4), model.new_cache(2, 10))


@pytest.mark.parametrize(("batch", "max_len"), [(0, 5), (1, 0), (1, 513)])
def test_impossible_caches_are_refused(model: CausalLM, batch: int, max_len: int) -> None:
    with pytest.raises(ValueError, match=f"a cache of {batch} rows and {max_len} positions.* 1..512"):
        model.new_cache(batch, max_len)


@torch.no_grad()
def test_kept_rows_go_on_as_if_alone(either: CausalLM) -> None:
    lengths, tokens = [5, 12, 8], text(3, 16)
    cache = poisoned(either.new_cache(3, 16))
    for row, n in enumerate(lengths):
        either(tokens[row : row + 1, :n], cache.rows(row, row + 1))
    kept = cache.keep([2, 0])
    assert kept.lengths.tolist() == [8, 5]
    logits = either(torch.stack((tokens[2, 8:11], tokens[0, 5:8])), kept)
    for i, (row, n) in enumerate(((2, 8), (0, 5))):
        assert relative(logits[i], either(tokens[row : row + 1, : n + 3])[0, n:]) <= TOLERANCE
    assert cache.lengths.tolist() == lengths  # copies: the cache they came from is as it was


@torch.no_grad()
def test_dynamic_scaling_makes_room_for_factor_times_the_trained_length(tiny_model: Callable[..., CausalLM]) -> None:
    scaling = RopeScaling(2.5, type="dynamic")
    model = tiny_model(max_position_embeddings=16, rope_scaling=scaling)
    assert model(text(1, 40), model.new_cache(1, 40)).isfinite().all()
    with pytest.raises(ValueError, match=r"positions in 1\.\.40"):
        model.new_cache(1, 41)
    with pytest.raises(ValueError, match="41 tokens exceed max_position_embeddings 16, stretched to 40"):
        model(text(1, 41))


@torch.no_grad()
def test_dynamic_rows_of_different_lengths_do_not_influence_each_other(tiny_gqa: Callable[..., CausalLM]) -> None:
    model = tiny_gqa(max_position_embeddings=8, rope_scaling=RopeScaling(8.0, type="dynamic"))
    lengths, tokens = [3, 30, 7], text(3, 40)
    together, alone = (poisoned(model.new_cache(3, 40)) for _ in range(2))
    for cache in (together, alone):
        for row, n in enumerate(lengths):
            model(tokens[row : row + 1, :n], cache.rows(row, row + 1))
    for piece in (1, 4, 1):
        new = [tokens[row, n : n + piece][None] for row, n in enumerate(together.lengths.tolist())]
        logits = model(torch.cat(new), together)
        for row in range(3):
            assert relative(logits[row : row + 1], model(new[row], alone.rows(row, row + 1))) <= TOLERANCE


def test_the_cache_follows_the_compute_dtype(tiny_model: Callable[..., CausalLM]) -> None:
    model = tiny_model()
    full = model.new_cache(2, 9).nbytes
    model.compute_dtype = torch.bfloat16
    assert model.new_cache(2, 9).nbytes * 2 == full == 2 * 9 * 3 * (24 + 8) * 4
