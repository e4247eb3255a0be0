"""Options of the MLA models that no class has as a whole: oracles put together from transformers' own blocks.

Rope scaling other than YaRN and a tied head DeepseekV3ForCausalLM has by itself. Layers with experts at every other
index are DeepSeek's published rule, which that class leaves out, and softmax scores are the router of DeepSeek-V2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DeepseekV2Config, DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MLP, DeepseekV3MoE

from moonlet.generate.step import Step
from moonlet.model.model import CausalLM
from moonlet.model.moe import MoE
from tests.parity.compare import (
    TOLERANCE,
    differences,
    error,
    quiet,
    read_ours,
    read_theirs,
    show_every_detail,
    text,
    too_large,
)

B, T, VOCABULARY = 2, 48, 71
EAGER = {"experts_implementation": "eager"}
ORIGINAL = 24  # the trained length, half of a text


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


def configure(**changes: Any) -> DeepseekV3Config:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 40, "intermediate_size": 56, "moe_intermediate_size": 18,
        "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 4, "n_shared_experts": 1,
        "n_routed_experts": 8, "routed_scaling_factor": 2.5, "kv_lora_rank": 24, "q_lora_rank": 28,
        "qk_rope_head_dim": 8, "v_head_dim": 10, "qk_nope_head_dim": 12, "n_group": 1, "topk_group": 1,
        "num_experts_per_tok": 3, "first_k_dense_replace": 1, "max_position_embeddings": 512,
        "initializer_range": 0.2, "num_mtp_layers": 0, "attn_implementation": "eager",
        "experts_implementation": "eager", "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    }  # fmt: skip
    return DeepseekV3Config(**(settings | changes))


def build(**changes: Any) -> DeepseekV3ForCausalLM:
    torch.manual_seed(0)
    model = DeepseekV3ForCausalLM(configure(**changes)).eval()
    show_every_detail(model)
    return model


def stretched(kind: str) -> dict[str, Any]:
    rope = {"rope_type": kind, "rope_theta": 1000.0, "factor": 2.5}
    return {"rope_parameters": rope, "max_position_embeddings": ORIGINAL if kind == "dynamic" else 512}


OF_THE_CLASS: dict[str, dict[str, Any]] = {
    "linear": stretched("linear"),
    "dynamic": stretched("dynamic"),
    "tied": {"tie_word_embeddings": True},
    "tied, dynamic, one query matrix": stretched("dynamic") | {"tie_word_embeddings": True, "q_lora_rank": None},
}


@pytest.mark.parametrize("option", OF_THE_CLASS)
def test_logits_gradients_and_both_folders(option: str, tmp_path: Path) -> None:
    oracle = build(**OF_THE_CLASS[option])
    ours, tokens = read_ours(oracle, tmp_path / "theirs"), text(VOCABULARY, B, T)
    assert too_large(differences(ours, oracle, tokens)) == {}
    again = read_theirs(ours, tmp_path / "ours", DeepseekV3ForCausalLM, **EAGER)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, oracle(tokens).logits)


@pytest.mark.parametrize("option", ["linear", "dynamic"])
@torch.no_grad()
def test_cached_decode_equals_the_oracles_cached_decode(option: str, tmp_path: Path) -> None:
    oracle = build(**OF_THE_CLASS[option])
    ours, tokens = read_ours(oracle, tmp_path), text(VOCABULARY, B, T)
    cache, fast, step = ours.new_cache(B, T), ours.new_cache(B, T), Step(ours, exact=False)
    first = oracle(tokens[:, :20], use_cache=True)
    past = first.past_key_values
    assert error(ours(tokens[:, :20], cache), first.logits) <= TOLERANCE
    ours.hidden(tokens[:, :20], fast)
    for t in range(20, T):
        theirs = oracle(tokens[:, t : t + 1], past_key_values=past, use_cache=True).logits
        assert error(ours(tokens[:, t : t + 1], cache), theirs) <= TOLERANCE
        assert error(step(tokens[:, t], fast), theirs[:, 0]) <= TOLERANCE


def alternating(frequency: int, dense: int) -> DeepseekV3ForCausalLM:
    """The class's model with the layers dense that DeepSeek's published rule makes so."""
    model = build(first_k_dense_replace=0, moe_layer_freq=frequency)
    model.config.first_k_dense_replace = dense
    for i, layer in enumerate(model.model.layers):
        if i < dense or i % frequency:
            layer.mlp = DeepseekV3MLP(model.config)
            for p in layer.mlp.parameters():
                nn.init.normal_(p, std=0.2)
    return model


@pytest.mark.parametrize(
    ("frequency", "dense", "with_experts"),
    [(2, 1, [2, 4]), (2, 0, [0, 2, 4]), (2, 3, [4]), (3, 1, [3]), (3, 0, [0, 3]), (1, 2, [2, 3, 4])],
)
def test_layers_with_experts_lie_where_deepseek_puts_them(
    frequency: int, dense: int, with_experts: list[int], tmp_path: Path
) -> None:
    oracle = alternating(frequency, dense)
    ours = read_ours(oracle, tmp_path)
    assert [i for i, layer in enumerate(ours.model.layers) if isinstance(layer.mlp, MoE)] == with_experts
    assert [i for i, layer in enumerate(oracle.model.layers) if isinstance(layer.mlp, DeepseekV3MoE)] == with_experts
    assert too_large(differences(ours, oracle, text(VOCABULARY, B, T))) == {}


def with_softmax_scores() -> DeepseekV3ForCausalLM:
    """The class's model with DeepSeek-V2's router: greedy, not normalised, without a bias."""
    model = build(norm_topk_prob=False, scoring_func="softmax")
    settings = {
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "routed_scaling_factor": 2.5,
        "hidden_size": 40,
        "num_attention_heads": 4,
    }
    for layer in model.model.layers:
        if isinstance(layer.mlp, DeepseekV3MoE):
            router = DeepseekV2TopkRouter(DeepseekV2Config(topk_method="greedy", **settings))
            router.weight.data = layer.mlp.gate.weight.data
            router.register_buffer("e_score_correction_bias", torch.zeros(8))  # the tensor our files have
            layer.mlp.gate = router
    return model


def test_softmax_scores_equal_deepseek_v2s_router(tmp_path: Path) -> None:
    oracle = with_softmax_scores()
    ours = read_ours(oracle, tmp_path)
    assert ours.config.scoring_func == "softmax"
    tokens = text(VOCABULARY, B, T)
    assert too_large(differences(ours, oracle, tokens)) == {}
    with torch.no_grad():  # and in the fast decode step, which routes by itself
        cache, step = ours.new_cache(1, T), Step(ours)
        logits = torch.stack([step(tokens[0, t : t + 1], cache) for t in range(T)], 1)
        assert error(logits, oracle(tokens[:1]).logits) <= TOLERANCE


def test_a_model_without_experts_is_read_by_the_class(tiny_model: Callable[..., CausalLM], tmp_path: Path) -> None:
    # Its file says that all layers are dense; zero experts alone would make the class build empty ones.
    ours = tiny_model(n_routed_experts=0)
    theirs = read_theirs(ours, tmp_path, DeepseekV3ForCausalLM, **EAGER)
    tokens: Tensor = text(61, B, T)
    assert too_large(differences(ours, theirs, tokens)) == {}
