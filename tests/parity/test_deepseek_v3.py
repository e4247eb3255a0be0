"""The oracle: transformers' DeepseekV3ForCausalLM, in fp32, in values and gradients, through files in both directions.

The mutations at the end show that these tests can fail: each breaks one published detail of the architecture in our
model and must be seen.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RMSNorm,
    DeepseekV3RotaryEmbedding,
)

import moonlet.model.mla
import moonlet.model.rope
from moonlet.config import ModelConfig, RopeScaling, preset
from moonlet.hub.read import read_model
from moonlet.hub.write import write_model
from moonlet.model.model import CausalLM
from moonlet.model.moe import MoE
from moonlet.model.norm import RMSNorm
from moonlet.model.rope import frequencies
from moonlet.model.router import Router
from moonlet.ops.native import without_kernels
from tests.parity import compare
from tests.parity.compare import TOLERANCE, differences, error, quiet, too_large

B, T = 2, 48

K2_YARN = {"factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0}
DEEPSEEK_YARN = {"factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0}

# What decides the structure is written out, so that every value the family uses occurs; the widths are drawn.
STRUCTURES: list[dict[str, Any]] = [
    {"q_lora": True, "groups": (1, 1), "shared": 1, "yarn": K2_YARN, "dense": 1, "eps": 1e-6},
    {"q_lora": True, "groups": (1, 1), "shared": 1, "yarn": K2_YARN, "dense": 1, "eps": 1e-5},
    {"q_lora": False, "groups": (1, 1), "shared": 2, "yarn": None, "dense": 1, "eps": 1e-5},
    {"q_lora": True, "groups": (4, 2), "shared": 1, "yarn": DEEPSEEK_YARN, "dense": 2, "eps": 1e-6},
    {"q_lora": False, "groups": (4, 2), "shared": 0, "yarn": DEEPSEEK_YARN, "dense": 0, "eps": 1e-5},
    {"q_lora": True, "groups": (2, 1), "shared": 2, "yarn": None, "dense": 2, "eps": 1e-5},
    {"q_lora": False, "groups": (2, 1), "shared": 1, "yarn": K2_YARN, "dense": 0, "eps": 1e-6},
    {"q_lora": True, "groups": (4, 3), "shared": 0, "yarn": None, "dense": 1, "eps": 1e-5},
    {"q_lora": False, "groups": (1, 1), "shared": 0, "yarn": K2_YARN, "dense": 2, "eps": 1e-5},
    {"q_lora": True, "groups": (1, 1), "shared": 2, "yarn": DEEPSEEK_YARN, "dense": 0, "eps": 1e-5, "norm": False},
    {"q_lora": False, "groups": (4, 1), "shared": 2, "yarn": {**K2_YARN, "factor": 64.0}, "dense": 1, "eps": 1e-5},
    {"q_lora": True, "groups": (4, 4), "shared": 1, "yarn": None, "dense": 0, "eps": 1e-6, "norm": False},
    {"q_lora": True, "groups": (1, 1), "shared": 1, "yarn": {**DEEPSEEK_YARN, "factor": 64.0}, "dense": 3, "eps": 1e-5},
    {"q_lora": False, "groups": (1, 1), "shared": 1, "yarn": None, "dense": 0, "eps": 1e-6},
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


def draw(case: int) -> DeepseekV3Config:
    """The oracle's configuration of structure `case`, with widths drawn from it."""
    s, rng = STRUCTURES[case], random.Random(case)
    heads = rng.choice((2, 3, 4))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": rng.choice((10000.0, 50000.0))}
    if s["yarn"]:
        # A short original context, so that the texts below run beyond it.
        rope |= {"rope_type": "yarn", "original_max_position_embeddings": 24, "mscale": 1.0, "mscale_all_dim": 1.0}
        rope |= s["yarn"]
    return DeepseekV3Config(
        vocab_size=rng.randrange(50, 90),
        hidden_size=rng.choice((32, 40, 48)),
        intermediate_size=rng.randrange(40, 80),
        moe_intermediate_size=rng.randrange(12, 40),
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        n_shared_experts=s["shared"],
        n_routed_experts=rng.choice((8, 12)),
        routed_scaling_factor=rng.choice((1.0, 2.446, 2.827)),
        kv_lora_rank=rng.randrange(16, 30),
        q_lora_rank=rng.randrange(16, 30) if s["q_lora"] else None,
        qk_rope_head_dim=rng.choice((8, 12, 16)),
        v_head_dim=rng.randrange(8, 20),
        qk_nope_head_dim=rng.randrange(8, 20),
        n_group=s["groups"][0],
        topk_group=s["groups"][1],
        num_experts_per_tok=2,
        first_k_dense_replace=s["dense"],
        norm_topk_prob=s.get("norm", True),
        max_position_embeddings=2048,
        initializer_range=0.2,
        rms_norm_eps=s["eps"],
        num_mtp_layers=0,
        rope_parameters=rope,
        attn_implementation="eager",
        experts_implementation="eager",
    )


@torch.no_grad()
def build_oracle(case: int) -> DeepseekV3ForCausalLM:
    """A random model in which every detail shows: gains and biases are random, and the latents small against eps."""
    torch.manual_seed(case)
    model = DeepseekV3ForCausalLM(draw(case)).eval()
    rank = model.config.kv_lora_rank
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("e_score_correction_bias"):
            value.copy_(0.2 * torch.randn(value.shape))
        elif "norm" in name:
            value.add_(0.3 * torch.randn(value.shape))
        elif "q_a_proj" in name:
            value.mul_(0.01)
        elif "kv_a_proj" in name:
            value[:rank].mul_(0.01)  # the shared key below stays large, or rope would not show
    return model


def text(model: DeepseekV3ForCausalLM, case: int) -> Tensor:
    return compare.text(model.config.vocab_size, B, T, case)


@pytest.mark.parametrize("case", range(len(STRUCTURES)))
def test_logits_and_gradients_equal_the_oracle_read_from_its_folder(case: int, tmp_path: Path) -> None:
    oracle = build_oracle(case)
    oracle.save_pretrained(tmp_path)
    errors = differences(read_model(tmp_path).eval(), oracle, text(oracle, case))
    assert too_large(errors) == {}


@pytest.mark.parametrize("case", range(len(STRUCTURES)))
def test_the_oracle_reads_the_folder_we_write(case: int, tmp_path: Path) -> None:
    source, ours_folder = tmp_path / "source", tmp_path / "ours"
    oracle = build_oracle(case)
    oracle.save_pretrained(source)
    ours = read_model(source).eval()
    write_model(ours, ours_folder)
    again, report = DeepseekV3ForCausalLM.from_pretrained(
        ours_folder, output_loading_info=True, attn_implementation="eager", experts_implementation="eager"
    )
    empty = {name for name, value in oracle.state_dict().items() if not value.numel()}  # shared experts of width 0
    assert set(report["missing_keys"]) == empty
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    tokens = text(oracle, case)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, oracle(tokens).logits)
        assert error(ours(tokens), again(tokens).logits) <= TOLERANCE


def test_our_loss_is_the_oracles_cross_entropy(tmp_path: Path) -> None:
    oracle = build_oracle(3)
    oracle.save_pretrained(tmp_path)
    tokens = text(oracle, 3)
    expected = F.cross_entropy(oracle(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    got = read_model(tmp_path).loss(tokens[:, :-1], tokens[:, 1:])
    assert got.item() == pytest.approx(expected.item(), rel=TOLERANCE)


def test_cached_decode_equals_the_oracle(tmp_path: Path) -> None:
    oracle = build_oracle(1)
    oracle.save_pretrained(tmp_path)
    ours, tokens = read_model(tmp_path).eval(), text(oracle, 1)
    with torch.no_grad():
        cache = ours.new_cache(B, T)
        parts = [ours(tokens[:, :20], cache), *(ours(tokens[:, t : t + 1], cache) for t in range(20, T))]
        assert error(torch.cat(parts, 1), oracle(tokens).logits) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "changes", "low_high", "scale"),
    [
        ("kimi-k2", {}, (19, 20), 0.130861),
        ("kimi-k2-thinking", {}, (19, 20), 0.144680),
        ("kimi-k2-thinking", {"beta_fast": 32.0}, (8, 20), 0.144680),  # K2.5
        ("deepseek-v3", {}, (10, 23), 0.135234),
        ("moonlight-16b-a3b", None, None, 0.0721688),
    ],
)
def test_frequencies_and_softmax_scale_equal_the_oracle(
    name: str, changes: dict[str, Any] | None, low_high: tuple[int, int] | None, scale: float
) -> None:
    config = preset(name)
    if changes and config.rope_scaling:
        given = {f: getattr(config.rope_scaling, f) for f in RopeScaling.__dataclass_fields__}
        config = config.replace(rope_scaling=given | changes)
    ours = frequencies(config.qk_rope_head_dim, config.rope_theta, config.rope_scaling)
    theirs = DeepseekV3Config(**{k: v for k, v in config.to_dict().items() if k != "architectures"})
    oracle = DeepseekV3RotaryEmbedding(theirs)
    torch.testing.assert_close(ours, oracle.inv_freq, rtol=1e-6, atol=0)
    assert oracle.attention_scaling == 1.0 == (config.rope_scaling.rotation_multiplier if config.rope_scaling else 1.0)
    with torch.device("meta"):
        assert config.softmax_scale == pytest.approx(DeepseekV3Attention(theirs, 0).scaling, rel=1e-12)
    assert config.softmax_scale == pytest.approx(scale, rel=5e-6)
    if low_high and config.rope_scaling:
        plain = frequencies(config.qk_rope_head_dim, config.rope_theta)
        stretch = (plain / ours).tolist()  # 1 where untouched, `factor` where fully interpolated
        low, high = low_high
        assert stretch[: low + 1] == pytest.approx([1.0] * (low + 1))
        assert stretch[high:] == pytest.approx([config.rope_scaling.factor] * (32 - high))
        assert all(1 < x < config.rope_scaling.factor for x in stretch[low + 1 : high])


def test_norm_rounds_before_the_gain_as_the_oracle_does() -> None:
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = 1 + 0.3 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    ours, oracle = RMSNorm(64, 1e-6), DeepseekV3RMSNorm(64, 1e-6)
    ours.weight.data, oracle.weight.data = weight.bfloat16(), weight.bfloat16()
    wrong = (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6) * weight.bfloat16()).bfloat16()
    expected = oracle(x)
    assert (ours(x) != expected).float().mean() < 1e-3  # the last bit of rsqrt may differ
    assert (wrong != expected).float().mean() > 1e-2  # what rounding once, at the end, would give


# Mutations. Each takes our right model and the monkeypatch fixture, and breaks one thing.


def _latent_eps_of_the_blocks(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for name, module in model.named_modules():
        if name.endswith("a_layernorm"):
            module.eps = model.config.rms_norm_eps  # type: ignore[assignment]


def _block_eps_of_the_latents(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.eps = 1e-6


def _routing(weigh: Callable[[Router, Tensor, Tensor], Tensor]) -> Callable[..., None]:
    """A mutation of the router: `weigh(router, scores, index)` replaces the published weights."""

    def mutate(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
        def forward(self: Router, x: Tensor, rows: int = 1) -> tuple[Tensor, Tensor]:
            scores = F.linear(x.float(), self.weight.float()).sigmoid()
            index = self.choose(scores.detach())
            return index, weigh(self, scores, index)

        patch.setattr(Router, "forward", forward)

    return mutate


def _bias_weighs(router: Router, scores: Tensor, index: Tensor) -> Tensor:
    w = (scores + router.e_score_correction_bias).gather(1, index)
    return w / w.sum(-1, keepdim=True) * router.scale


def _scaled_before_normalising(router: Router, scores: Tensor, index: Tensor) -> Tensor:
    w = scores.gather(1, index) * router.scale
    return w / w.sum(-1, keepdim=True)


def _not_normalised(router: Router, scores: Tensor, index: Tensor) -> Tensor:
    return scores.gather(1, index) * router.scale


def _as_published(router: Router, scores: Tensor, index: Tensor) -> Tensor:
    w = scores.gather(1, index)
    return w / w.sum(-1, keepdim=True) * router.scale


def _rope_in_halves(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = rotation[0].unsqueeze(-2), rotation[1].unsqueeze(-2)
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    patch.setattr(moonlet.model.mla, "rotate", rotate)
    patch.setattr(moonlet.model.mla, "fits", lambda *_: False)  # the kernel turns by itself


def _plain_frequencies(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    c = model.config
    model._rope = moonlet.model.rope.Rope(c.replace(rope_scaling=None))


def _softmax_scale_without_mscale(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for layer in model.model.layers:
        layer.self_attn.scale = model.config.qk_head_dim**-0.5  # type: ignore[union-attr,assignment]


def _gate_and_up_swapped(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for layer in model.model.layers:
        if isinstance(layer.mlp, MoE):
            w = layer.mlp.experts.gate_up_proj
            w.data = w.data.roll(w.shape[1] // 2, 1)


def _groups_ignored(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for module in model.modules():
        if isinstance(module, Router):
            module.rule = dataclasses.replace(module.rule, groups=1)


def _bias_ignored(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for module in model.modules():
        if isinstance(module, Router):
            module.e_score_correction_bias.zero_()


MUTATIONS: dict[str, Callable[..., None]] = {
    "latent norms with the blocks' eps": _latent_eps_of_the_blocks,
    "block norms with the latents' eps": _block_eps_of_the_latents,
    "bias used in the weight": _routing(_bias_weighs),
    "scaled before normalising": _routing(_scaled_before_normalising),
    "weights not normalised": _routing(_not_normalised),
    "rope on halves": _rope_in_halves,
    "YaRN frequencies missing": _plain_frequencies,
    "mscale missing in the softmax scale": _softmax_scale_without_mscale,
    "gate and up swapped": _gate_and_up_swapped,
    "groups ignored": _groups_ignored,
    "bias ignored": _bias_ignored,
}


@pytest.fixture
def discriminating(tmp_path: Path) -> tuple[CausalLM, DeepseekV3ForCausalLM]:
    """YaRN, groups, q_lora, shared experts and eps 1e-5 in one model, ours and the oracle's."""
    case = len(STRUCTURES)
    STRUCTURES.append({"q_lora": True, "groups": (4, 2), "shared": 1, "yarn": K2_YARN, "dense": 1, "eps": 1e-5})
    try:
        oracle = build_oracle(case)
    finally:
        STRUCTURES.pop()
    oracle.save_pretrained(tmp_path)
    return read_model(tmp_path).eval(), oracle


@pytest.mark.parametrize("mutation", MUTATIONS)
@without_kernels()  # what is broken here is written in PyTorch
def test_breaking_one_detail_breaks_parity(
    mutation: str, discriminating: tuple[CausalLM, DeepseekV3ForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, oracle = discriminating
    tokens = text(oracle, 0)
    assert max(differences(ours, oracle, tokens).values()) <= TOLERANCE
    MUTATIONS[mutation](ours, monkeypatch)
    assert differences(ours, oracle, tokens)["logits"] > 10 * TOLERANCE


def test_the_mutated_router_form_is_right_when_it_weighs_as_published(
    discriminating: tuple[CausalLM, DeepseekV3ForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise the router mutations above would fail for a reason of their own.
    ours, oracle = discriminating
    _routing(_as_published)(ours, monkeypatch)
    assert max(differences(ours, oracle, text(oracle, 0)).values()) <= TOLERANCE


@pytest.mark.parametrize("case", range(len(STRUCTURES)))
def test_the_oracles_config_survives_the_way_through_ours(case: int, tmp_path: Path) -> None:
    theirs = draw(case)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(ModelConfig.from_file(tmp_path).to_dict()), encoding="utf-8")
    back = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(back, DeepseekV3Config)
    ignored = {"transformers_version", "_name_or_path", "architectures", "dtype", "rope_parameters"}
    for name in set(theirs.to_dict()) - ignored:
        assert getattr(back, name) == getattr(theirs, name), name
    given = theirs.rope_parameters
    assert {k: back.rope_parameters[k] for k in given} == given
