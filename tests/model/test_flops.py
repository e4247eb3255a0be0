"""The formula for operations against a count of every product that is actually taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moonlet.config import ModelConfig, preset, preset_names
from moonlet.model.flops import flops_per_token
from moonlet.ops.dispatch import force

SHAPES: dict[str, dict[str, Any]] = {
    "mla": {},
    "one query matrix": {"q_lora_rank": None},
    "two shared experts": {"n_shared_experts": 2},
    "no shared expert": {"n_shared_experts": 0},
    "dense": {"n_routed_experts": 0, "n_shared_experts": 0},
    "grouped queries": {"kv_lora_rank": None, "num_key_value_heads": 2, "head_dim": 10},
    "one key head": {"kv_lora_rank": None, "num_key_value_heads": 1, "head_dim": 16, "partial_rotary_factor": 0.5},
    "tied, dense, every head its own": {"kv_lora_rank": None, "n_routed_experts": 0, "tie_word_embeddings": True},
    "alternating": {"moe_layer_freq": 2, "num_hidden_layers": 5},
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("tokens", [1, 13])
def test_a_prefill_is_the_sum_of_its_tokens(
    tiny_model: Callable[..., Any], changes: dict[str, Any], tokens: int
) -> None:
    model = tiny_model(**changes)
    # The other forms of the experts pad rows, and the counter knows no fused attention; these take each product once.
    plain = force("experts", "reference"), force("attention", "products")
    with plain[0], plain[1], torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, tokens, dtype=torch.int64))
    assert counter.get_total_flops() == 2 * tokens * flops_per_token(model.config, tokens).total


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_training_costs_three_times_as_much(tiny_model: Callable[..., Any], changes: dict[str, Any]) -> None:
    model, tokens = tiny_model(**changes).train(), 11
    ids = torch.zeros(1, tokens, dtype=torch.int64)
    plain = force("experts", "reference"), force("attention", "products")
    with plain[0], plain[1], FlopCounterMode(display=False) as counter:
        model.loss(ids, ids).backward()
    assert counter.get_total_flops() == tokens * flops_per_token(model.config, tokens).training


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_a_decode_step_attends_to_the_latents(tiny_model: Callable[..., Any], changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    cache = model.new_cache(1, 20)
    with torch.no_grad():
        model(torch.zeros(1, 15, dtype=torch.int64), cache)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 1, dtype=torch.int64), cache)
    assert counter.get_total_flops() == flops_per_token(model.config, 16, absorbed=True).total


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
