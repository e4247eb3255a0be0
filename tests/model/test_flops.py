"""The formula for operations against a count of every product that is actually taken."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moonlet.config import ModelConfig, preset, preset_names
from moonlet.model.flops import Flops, flops_per_token
from moonlet.ops.dispatch import force
from moonlet.ops.native import without_kernels
from tests.conftest import LINEAR

SHAPES: dict[str, dict[str, Any]] = {
    "mla": {},
    "one query matrix": {"q_lora_rank": None},
    "two shared experts": {"n_shared_experts": 2},
    "no shared expert": {"n_shared_experts": 0},
    "dense": {"n_routed_experts": 0, "n_shared_experts": 0},
    "grouped queries": {"kv_lora_rank": None, "num_key_value_heads": 2, "head_dim": 10},
    "one key head": {"kv_lora_rank": None, "num_key_value_heads": 1, "head_dim": 16, "partial_rotary_factor": 0.5},
    "tied, dense, every head its own": {"kv_lora_rank": None, "n_routed_experts": 0, "tie_word_embeddings": True},
    "kimi linear": LINEAR,
    "kda with a query of two matrices, dense": LINEAR | {"q_lora_rank": 28, "n_routed_experts": 0},
    "attention without position": LINEAR | {"linear_attn_config": None},
    "alternating": {"moe_layer_freq": 2, "num_hidden_layers": 5},
}


def counted(flops: Flops, config: ModelConfig, recurrence: int = 4) -> int:
    """Those of `flops` that PyTorch's counter sees.

    A filter is no matrix product to it. Of a head's recurrence, in the plain form, it sees the state read twice, 4 d^2,
    and not the outer product added in between.
    """
    linear = config.linear_attn_config
    if linear is None:
        return flops.total
    seen = recurrence * linear.head_dim**2 * linear.num_heads - 2 * 3 * linear.short_conv_kernel_size * linear.width
    return flops.total - flops.delta + config.num_kda_layers * seen


def plain() -> ExitStack:
    """Forms that take each product once: others pad rows, skip what is hidden, or are unknown to the counter."""
    stack = ExitStack()
    stack.enter_context(without_kernels())
    for op, form in (("experts", "reference"), ("attention", "products"), ("delta_rule", "reference")):
        stack.enter_context(force(op, form))
    return stack


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("tokens", [1, 13])
def test_a_prefill_is_the_sum_of_its_tokens(
    tiny_model: Callable[..., Any], changes: dict[str, Any], tokens: int
) -> None:
    model = tiny_model(**changes)
    with plain(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, tokens, dtype=torch.int64))
    assert counter.get_total_flops() == 2 * tokens * counted(flops_per_token(model.config, tokens), model.config)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_training_costs_three_times_as_much(tiny_model: Callable[..., Any], changes: dict[str, Any]) -> None:
    model, tokens = tiny_model(**changes).train(), 11
    ids = torch.zeros(1, tokens, dtype=torch.int64)
    with plain(), FlopCounterMode(display=False) as counter:
        model.loss(ids, ids).backward()
    flops = flops_per_token(model.config, tokens)
    assert counter.get_total_flops() == 3 * tokens * counted(flops, model.config)
    assert flops.training == 3 * flops.total


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_a_decode_step_attends_to_the_latents(tiny_model: Callable[..., Any], changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    cache = model.new_cache(1, 20)
    with torch.no_grad(), force("route", "reference"):
        model(torch.zeros(1, 15, dtype=torch.int64), cache)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 1, dtype=torch.int64), cache)
    flops, found = flops_per_token(model.config, 16, absorbed=True), counter.get_total_flops()
    # The outer product may be taken as one of matrices, and may meet the query before it is added.
    linear = model.config.linear_attn_config
    more = 4 * linear.width * model.config.num_kda_layers if linear else 0
    assert counted(flops, model.config) <= found <= counted(flops, model.config, 6) + more


@pytest.mark.parametrize("name", preset_names())
def test_parts_sum_to_the_total(name: str) -> None:
    flops = flops_per_token(preset(name), 1024)
    assert sum(flops.parts.values()) == flops.total
    assert flops.embedding == 0
    assert flops.training == 3 * flops.total


def test_only_the_scores_grow_with_the_context() -> None:
    short, long = (flops_per_token(preset("kimi-k2"), n) for n in (1000, 3000))
    assert long.scores == 3 * short.scores
    assert long.total - long.scores == short.total - short.scores
    # 2 H (K + P + V) a key and layer.
    assert short.scores == 61 * 2 * 64 * (128 + 64 + 128) * 1000


def test_delta_attention_costs_the_same_at_any_context() -> None:
    config = preset("kimi-linear-48b-a3b")
    short, long = (flops_per_token(config, n) for n in (1000, 3000))
    assert long.scores == 3 * short.scores == 7 * 2 * 32 * (128 + 64 + 128) * 3000  # of the layers that attend
    assert long.delta == short.delta == 20 * 32 * (6 * 128**2 + 3 * 64 * 128 + 64**2)
    assert long.total - long.scores == short.total - short.scores
    decode = flops_per_token(config, 3000, absorbed=True)
    assert (decode.delta, decode.kda) == (20 * 32 * 6 * 128**2, long.kda)
    # Two operations an entry, of all but the rates and the norm.
    assert long.kda == 2 * 20 * (39_514_272 - 32 - 4096 - 128)


def test_without_scores_a_token_pays_two_operations_a_weight() -> None:
    config = preset("kimi-k2")
    flops = flops_per_token(config, 1)
    # 31,687,095,808 active with the head, less the norms and the routers' biases, which multiply nothing in a product.
    vectors = 61 * (1536 + 512 + 2 * 7168) + 7168 + 60 * 384
    assert flops.total - flops.scores == 2 * (31_687_095_808 - vectors)


@pytest.mark.parametrize("context", [0, 513])
def test_an_impossible_context_is_refused(tiny_config: Callable[..., ModelConfig], context: int) -> None:
    with pytest.raises(ValueError, match=rf"{context} tokens.*1\.\.512"):
        flops_per_token(tiny_config(), context)
