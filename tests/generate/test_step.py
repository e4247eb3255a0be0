"""The decode step is CausalLM.last_logits for one token, whatever the configuration and the rows' lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moonlet.generate.decoding import lay_out
from moonlet.generate.step import Step
from moonlet.model.cache import Cache
from moonlet.model.model import CausalLM
from moonlet.ops.dispatch import force
from tests.conftest import GQA

YARN = {
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def prefilled(model: CausalLM, lengths: list[int]) -> Cache:
    cache = model.new_cache(len(lengths), 64)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for i, n in enumerate(lengths):
            model.hidden(torch.randint(61, (1, n), generator=generator), cache.rows(i, i + 1))
    return cache


def compare(model: CausalLM, lengths: list[int], exact: bool, steps: int = 3) -> None:
    """Two caches, one decoded by the step and one by the model."""
    ours, law, step = prefilled(model, lengths), prefilled(model, lengths), Step(model, exact)
    for n in range(steps):
        tokens = torch.arange(len(lengths)) + n
        with torch.no_grad():
            want = model.last_logits(tokens[:, None], law)
        assert relative(step(tokens, ours), want) <= 1e-5
    assert ours.lengths.tolist() == law.lengths.tolist()
    for a, b in zip(ours.layers, law.layers, strict=True):
        assert relative(a.entries, b.entries) <= 1e-5


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"q_lora_rank": None},
        {"n_shared_experts": 0},
        {"n_shared_experts": 2, "norm_topk_prob": False},
        {"n_group": 4, "topk_group": 2},
        {"n_routed_experts": 0},
        {"first_k_dense_replace": 0, "rms_norm_eps": 1e-2},
        {"rope_scaling": YARN},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 8.0}, "max_position_embeddings": 8},
        {"scoring_func": "softmax", "moe_layer_freq": 2, "tie_word_embeddings": True},
        GQA,
        GQA | {"num_key_value_heads": 4, "head_dim": 16, "partial_rotary_factor": 0.5, "rope_scaling": YARN},
        GQA | {"num_key_value_heads": 1, "n_routed_experts": 0, "tie_word_embeddings": True},
        GQA | {"rope_scaling": {"type": "dynamic", "factor": 8.0}, "max_position_embeddings": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("lengths", [[9], [9, 9, 9], [3, 12, 7]], ids=str)
@pytest.mark.parametrize("exact", [True, False])
def test_step_equals_the_model(
    tiny_model: Callable[..., CausalLM], changes: dict[str, Any], lengths: list[int], exact: bool
) -> None:
    if "rope_scaling" in changes:
        from moonlet.config import RopeScaling

        changes = changes | {"rope_scaling": RopeScaling(**changes["rope_scaling"])}
    compare(tiny_model(**changes), lengths, exact)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("changes", [{}, GQA], ids=["mla", "gqa"])
def test_dynamic_frequencies_follow_each_rows_own_length(
    tiny_model: Callable[..., CausalLM], changes: dict[str, Any], exact: bool
) -> None:
    from moonlet.config import RopeScaling

    scaling = RopeScaling(8.0, type="dynamic")
    model = tiny_model(**changes, rope_scaling=scaling, max_position_embeddings=8)
    lengths, tokens = [2, 30, 9], torch.arange(3)  # within the trained length, far and just beyond it
    together, alone, law, step = *(prefilled(model, lengths) for _ in range(3)), Step(model, exact)
    for _ in range(8):
        logits = step(tokens, together)
        for i in range(3):
            lone = step(tokens[i : i + 1], alone.rows(i, i + 1))
            with torch.no_grad():
                assert relative(model.last_logits(tokens[i : i + 1, None], law.rows(i, i + 1)), lone) <= 1e-5
            assert torch.equal(logits[i : i + 1], lone) if exact else relative(logits[i : i + 1], lone) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("laid_out", [False, True])
@pytest.mark.parametrize("changes", [{}, GQA], ids=["mla", "gqa"])
def test_exact_logits_are_the_lone_rows_to_the_bit(
    tiny_model: Callable[..., CausalLM], dtype: torch.dtype, laid_out: bool, changes: dict[str, Any]
) -> None:
    model = tiny_model(**changes).to(dtype)
    if laid_out:
        with force("decode_step", "plain"):
            lay_out(model)
    lengths, tokens, step = [3, 12, 7, 3, 9], torch.arange(5), Step(model, exact=True)
    together, alone = prefilled(model, lengths), prefilled(model, lengths)
    for layer in together.layers:
        for row, n in enumerate(lengths):
            # Whatever lies behind a row's end; latents are [B, S, R+P], keys and values [2, B, G, S, K].
            behind = layer.entries[:, row, :, n:] if changes else layer.entries[row, n:]
            behind.fill_(float("nan"))
    for _ in range(3):
        rows = [step(tokens[i : i + 1], alone.rows(i, i + 1)) for i in range(5)]
        assert torch.equal(step(tokens, together), torch.cat(rows))


@pytest.mark.parametrize("changes", [{}, GQA], ids=["mla", "gqa"])
def test_step_in_bf16_is_near_the_model_in_bf16(tiny_model: Callable[..., CausalLM], changes: dict[str, Any]) -> None:
    model = tiny_model(**changes).bfloat16()
    ours, law = prefilled(model, [9, 5]), prefilled(model, [9, 5])
    tokens = torch.tensor([1, 2])
    with torch.no_grad():
        want = model.last_logits(tokens[:, None], law)
    got = Step(model, exact=False)(tokens, ours)
    assert got.dtype == torch.bfloat16
    assert relative(got.float(), want.float()) < 0.05


def test_lay_out_changes_strides_and_nothing_else(tiny_model: Callable[..., CausalLM]) -> None:
    model, plain = tiny_model(), tiny_model()
    with force("decode_step", "plain"):
        lay_out(model)
    assert model.lm_head.weight.stride() == (1, 61)
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    compare(model, [9], True)
    compare(model, [3, 12, 7], False)


def test_step_counts_no_load_while_training(tiny_model: Callable[..., CausalLM]) -> None:
    model = tiny_model().train()
    cache = model.new_cache(2, 8)
    Step(model, exact=False)(torch.tensor([1, 2]), cache)
    assert all(int(m.load.sum()) == 0 for m in model.modules() if hasattr(m, "load"))


def test_a_full_cache_is_an_error(tiny_model: Callable[..., CausalLM]) -> None:
    model = tiny_model()
    step, cache = Step(model), model.new_cache(1, 1)
    step(torch.tensor([1]), cache)
    with pytest.raises(ValueError, match="room for 1"):
        step(torch.tensor([1]), cache)
