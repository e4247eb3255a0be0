"""The oracle for GQA beside experts: transformers' Glm4MoeForCausalLM without its qk-norm, in fp32."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, Glm4MoeConfig, Glm4MoeForCausalLM

import moonlet.model.gqa
from moonlet.config import ModelConfig
from moonlet.model.model import CausalLM
from moonlet.model.moe import MoE
from moonlet.model.rope import Rotation, rotate_halves
from moonlet.model.router import Router
from moonlet.ops.native import without_kernels
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

B, T = 2, 40
EAGER = {"experts_implementation": "eager"}

# Heads, heads of keys, turned part of a head, (groups, open groups), shared experts, dense layers, scaling, tied.
STRUCTURES: list[tuple[int, int, float, tuple[int, int], int, int, dict[str, Any], bool]] = [
    (4, 2, 1.0, (1, 1), 1, 1, {}, False),
    (4, 4, 0.5, (1, 1), 2, 1, {}, False),
    (4, 1, 0.5, (4, 2), 1, 0, {}, True),
    (6, 2, 1.0, (2, 1), 0, 2, {"rope_type": "linear", "factor": 2.0}, False),
    (8, 2, 0.5, (1, 1), 2, 1, {"rope_type": "dynamic", "factor": 2.0}, False),
    (4, 2, 1.0, (4, 3), 1, 1, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, False),
    (4, 2, 0.25, (1, 1), 1, 3, {}, True),  # no layer with experts
]
CASES = range(len(STRUCTURES))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


def draw(case: int) -> Glm4MoeConfig:
    """The oracle's configuration of structure `case`, with widths drawn from it."""
    heads, key_heads, turned, groups, shared, dense, scaling, tied = STRUCTURES[case]
    rng = random.Random(case)
    return Glm4MoeConfig(
        vocab_size=rng.randrange(50, 90),
        hidden_size=rng.choice((32, 40, 48)),
        intermediate_size=rng.randrange(40, 80),
        moe_intermediate_size=rng.randrange(12, 40),
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=rng.choice((8, 16)),
        n_routed_experts=rng.choice((8, 12)),
        n_shared_experts=shared,
        num_experts_per_tok=rng.choice((2, 3)),
        n_group=groups[0],
        topk_group=groups[1],
        first_k_dense_replace=dense,
        routed_scaling_factor=rng.choice((1.0, 2.5)),
        norm_topk_prob=case != 1,
        max_position_embeddings=24 if scaling.get("rope_type") == "dynamic" else 2048,
        initializer_range=0.2,
        rms_norm_eps=rng.choice((1e-5, 1e-6)),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": turned} | scaling,
        tie_word_embeddings=tied,
        num_mtp_layers=0,
        attn_implementation="eager",
        experts_implementation="eager",
    )


def build_oracle(case: int) -> Glm4MoeForCausalLM:
    torch.manual_seed(case)
    model = Glm4MoeForCausalLM(draw(case)).eval()
    show_every_detail(model)
    return model


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_the_oracle_read_from_its_folder(case: int, tmp_path: Path) -> None:
    oracle = build_oracle(case)
    tokens = text(oracle.config.vocab_size, B, T, case)
    assert too_large(differences(read_ours(oracle, tmp_path), oracle, tokens)) == {}


@pytest.mark.parametrize("case", CASES)
def test_the_oracle_reads_the_folder_we_write(case: int, tmp_path: Path) -> None:
    oracle = build_oracle(case)
    ours = read_ours(oracle, tmp_path / "source")
    again = read_theirs(ours, tmp_path / "ours", Glm4MoeForCausalLM, **EAGER)
    tokens = text(oracle.config.vocab_size, B, T, case)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, oracle(tokens).logits)
        assert error(ours(tokens), again(tokens).logits) <= TOLERANCE


def test_a_dense_model_that_llama_cannot_hold_is_written_in_this_form(
    tiny_model: Callable[..., CausalLM], tmp_path: Path
) -> None:
    # Heads that do not divide the width, and half of each turned.
    ours = tiny_model(
        kv_lora_rank=None, num_attention_heads=6, num_key_value_heads=3, head_dim=8, partial_rotary_factor=0.5,
        n_routed_experts=0,
    )  # fmt: skip
    theirs = read_theirs(ours, tmp_path, Glm4MoeForCausalLM, **EAGER)
    tokens = text(61, B, T)
    assert too_large(differences(ours, theirs, tokens)) == {}


@pytest.mark.parametrize("case", CASES)
def test_the_oracles_config_survives_the_way_through_ours(case: int, tmp_path: Path) -> None:
    theirs = draw(case)
    theirs.save_pretrained(tmp_path)
    config = ModelConfig.from_file(tmp_path)
    assert ModelConfig.from_dict(config.to_dict()) == config
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    back = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(back, Glm4MoeConfig)
    ignored = {"transformers_version", "_name_or_path", "architectures", "dtype", "rope_parameters"}
    for name in set(theirs.to_dict()) - ignored:
        assert getattr(back, name) == getattr(theirs, name), name
    given = theirs.rope_parameters
    assert {k: back.rope_parameters[k] for k in given} == given


def test_what_a_file_leaves_out_is_the_classs_default(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "glm4_moe", "head_dim": 128}', encoding="utf-8")
    ours, theirs = ModelConfig.from_file(tmp_path), AutoConfig.from_pretrained(tmp_path)
    for name in (
        "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "n_routed_experts", "n_shared_experts", "num_experts_per_tok",
        "routed_scaling_factor", "n_group", "topk_group", "first_k_dense_replace", "norm_topk_prob", "rms_norm_eps",
        "max_position_embeddings", "initializer_range", "tie_word_embeddings",
    ):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.partial_rotary_factor == theirs.rope_parameters["partial_rotary_factor"]
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


# Mutations, as in the other comparisons.


def _all_of_the_head_turned(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    from moonlet.model.rope import Rope

    model._rope = Rope(model.config.replace(partial_rotary_factor=1.0))


def _the_last_part_turned(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        return rotate_halves(x.roll(x.shape[-1] // 2, -1), rotation).roll(-(x.shape[-1] // 2), -1)

    patch.setattr(moonlet.model.gqa, "rotate_halves", rotate)


def _bias_ignored(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for module in model.modules():
        if isinstance(module, Router):
            module.e_score_correction_bias.zero_()


def _softmax_scores(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for module in model.modules():
        if isinstance(module, Router):
            module.rule = dataclasses.replace(module.rule, softmax=True)


def _without_shared_experts(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for module in model.modules():
        if isinstance(module, MoE):
            module.has_shared = False


MUTATIONS: dict[str, Callable[..., None]] = {
    "all of the head turned": _all_of_the_head_turned,
    "the last part turned": _the_last_part_turned,
    "bias ignored": _bias_ignored,
    "softmax scores": _softmax_scores,
    "shared experts missing": _without_shared_experts,
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@without_kernels()  # what is broken here is written in PyTorch
def test_breaking_one_detail_breaks_parity(mutation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = build_oracle(2)
    ours = read_ours(oracle, tmp_path)
    tokens = text(oracle.config.vocab_size, B, T)
    MUTATIONS[mutation](ours, monkeypatch)
    with torch.no_grad():
        assert error(ours(tokens), oracle(tokens).logits) > 10 * TOLERANCE
