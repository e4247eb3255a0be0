"""Kimi delta attention as a layer of the network: the equations, their parameters, and what they begin with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moonlet.config import ModelConfig
from moonlet.config.linear_attention import LinearAttention
from moonlet.model.init import build
from moonlet.model.kda import KDA
from moonlet.model.mla import MLA
from moonlet.model.model import CausalLM
from tests.conftest import HYBRID

Make = Callable[..., CausalLM]


def text(B: int, T: int, seed: int = 0) -> Tensor:
    return torch.randint(61, (B, T), generator=torch.Generator().manual_seed(seed))


def kda_of(model: CausalLM, layer: int = 0) -> KDA:
    mixer = model.model.layers[layer].self_attn
    assert isinstance(mixer, KDA)
    return mixer


def by_hand(kda: KDA, x: Tensor) -> Tensor:
    """One text [T, D], token by token and head by head, as the report writes it."""
    w = {name: value.double() for name, value in kda.state_dict().items()}
    x, H, K = x.double(), kda.heads, kda.K
    S = [torch.zeros(K, K, dtype=torch.float64) for _ in range(H)]
    out = []
    for t in range(len(x)):
        qkv = []
        for name in "qkv":
            c = torch.zeros(H * K, dtype=torch.float64)
            for j in range(min(t + 1, kda.taps)):
                c += w[f"{name}_conv1d.weight"][:, 0, kda.taps - 1 - j] * (w[f"{name}_proj.weight"] @ x[t - j])
            qkv.append((c * torch.sigmoid(c)).view(H, K))
        f = w["f_b_proj.weight"] @ (w["f_a_proj.weight"] @ x[t]) + w["dt_bias"]
        gate = torch.sigmoid(w["g_b_proj.weight"] @ (w["g_a_proj.weight"] @ x[t])).view(H, K)
        beta = torch.sigmoid(w["b_proj.weight"] @ x[t])
        heads = []
        for h in range(H):
            q, k, v = (part[h] for part in qkv)
            q, k = (y / math.sqrt((y @ y).item() + 1e-6) for y in (q, k))
            decay = torch.exp(-torch.exp(w["A_log"][0, 0, h, 0]) * torch.log1p(torch.exp(f.view(H, K)[h])))
            S[h] = torch.diag(decay) @ S[h]
            S[h] = S[h] + beta[h] * torch.outer(k, v - S[h].T @ k)
            o = S[h].T @ (q / math.sqrt(K))
            heads.append(o / torch.sqrt(o.square().mean() + kda.o_norm.eps) * w["o_norm.weight"] * gate[h])
        out.append(w["o_proj.weight"] @ torch.cat(heads))
    return torch.stack(out)


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_the_layer_is_its_equations(tiny_model: Make, layer: int) -> None:
    kda = kda_of(tiny_model(**HYBRID), layer)
    x = torch.randn(2, 23, 40, generator=torch.Generator().manual_seed(layer))
    want = torch.stack([by_hand(kda, row) for row in x])
    assert (kda(x).double() - want).abs().max() <= 1e-5 * want.abs().max()


def test_gradients_of_the_layer_in_fp64(tiny_config: Callable[..., ModelConfig]) -> None:
    config = tiny_config(hidden_size=3, num_attention_heads=1, num_key_value_heads=1, **HYBRID)
    config = config.replace(linear_attn_config=LinearAttention(2, 2, (1,), 3))
    model = build(config.replace(initializer_range=0.7))
    kda = kda_of(model).double()
    x = torch.randn(1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    documents = torch.tensor([[0, 0, 1, 1]])
    names = list(dict(kda.named_parameters()))

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(
            kda, dict(zip(names, weights, strict=True)), (x,), {"documents": documents}
        )
        return out

    assert torch.autograd.gradcheck(run, (x, *(p.detach().requires_grad_() for p in kda.parameters())))


def test_names_and_shapes_are_the_checkpoints(tiny_config: Callable[..., ModelConfig]) -> None:
    # Of the published Kimi-Linear-48B-A3B-Instruct, layer 0.
    D, H, K = 2304, 32, 128
    config = tiny_config(hidden_size=D, **HYBRID).replace(linear_attn_config=LinearAttention(K, H, (1, 2, 3)))
    shapes = {n: tuple(p.shape) for n, p in kda_of(build(config, "meta")).named_parameters()}
    assert shapes == {
        **{f"{name}_proj.weight": (H * K, D) for name in "qkv"},
        **{f"{name}_conv1d.weight": (H * K, 1, 4) for name in "qkv"},
        "A_log": (1, 1, H, 1),
        "dt_bias": (H * K,),
        "f_a_proj.weight": (K, D),
        "f_b_proj.weight": (H * K, K),
        "b_proj.weight": (H, D),
        "g_a_proj.weight": (K, D),
        "g_b_proj.weight": (H * K, K),
        "o_norm.weight": (K,),
        "o_proj.weight": (D, H * K),
    }
    assert sum(math.prod(shape) for shape in shapes.values()) == 39_514_272


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        (HYBRID, [KDA, KDA, KDA, MLA]),
        (HYBRID | {"linear_attn_config": LinearAttention(6, 3, (1, 3))}, [KDA, MLA, KDA, MLA]),
        (HYBRID | {"linear_attn_config": LinearAttention(6, 3, (1, 2, 3, 4))}, [KDA] * 4),
        (HYBRID | {"linear_attn_config": None}, [MLA] * 4),
    ],
    ids=["three to one", "alternating", "kda alone", "mla alone"],
)
def test_the_lists_count_layers_from_one(tiny_model: Make, changes: dict[str, Any], kinds: list[type]) -> None:
    model = tiny_model(**changes)
    assert [type(layer.self_attn) for layer in model.model.layers] == kinds
    assert model(text(2, 9)).isfinite().all()


def test_every_parameter_has_a_gradient(tiny_model: Make) -> None:
    model = tiny_model(**HYBRID)
    tokens = text(2, 30)
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name


def test_rates_stay_fp32_to_the_bit_when_the_model_is_cast(tiny_model: Make) -> None:
    model = tiny_model(**HYBRID)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith(("A_log", "dt_bias"))}
    assert len(before) == 6
    model.to(torch.bfloat16)
    for name, p in model.named_parameters():
        assert p.dtype == (torch.float32 if name in before else torch.bfloat16), name
        assert name not in before or torch.equal(p, before[name]), name
    assert model(text(1, 5)).dtype == torch.bfloat16
    model.double().float()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@torch.no_grad()
def test_bf16_is_near_fp32(tiny_model: Make) -> None:
    kda = kda_of(tiny_model(**HYBRID))
    x = torch.randn(2, 50, 40, generator=torch.Generator().manual_seed(1)).bfloat16()
    want, got = kda(x.float()), kda(x)
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).norm() <= 0.02 * want.norm()


@torch.no_grad()
def test_without_position_attention_sees_a_set(tiny_model: Make) -> None:
    model = tiny_model(**HYBRID)
    mla = model.model.layers[3].self_attn
    assert isinstance(mla, MLA)
    assert mla.scale == (12 + 8) ** -0.5
    assert model._rope is None
    x = torch.randn(1, 20, 40, generator=torch.Generator().manual_seed(1))
    shuffled = torch.cat((x[:, torch.randperm(19, generator=torch.Generator().manual_seed(2))], x[:, 19:]), 1)
    torch.testing.assert_close(mla(x, None)[:, -1], mla(shuffled, None)[:, -1], rtol=1e-5, atol=1e-6)


def test_a_text_has_as_many_tokens_as_the_model_was_trained_for(tiny_model: Make) -> None:
    with pytest.raises(ValueError, match="513 tokens exceed max_position_embeddings 512"):
        tiny_model(**HYBRID)(text(1, 513))


def test_rates_begin_as_published() -> None:
    linear = LinearAttention(head_dim=64, num_heads=64, kda_layers=(1, 2))
    config = ModelConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        q_lora_rank=None, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4, intermediate_size=16,
        n_routed_experts=0, mla_use_nope=True, linear_attn_config=linear,
    )  # fmt: skip
    model = build(config)
    for layer in range(2):
        kda = kda_of(model, layer)
        a = kda.A_log.detach().exp().flatten()
        assert a.min() >= 1
        assert a.max() <= 16
        assert abs(a.mean().item() - 8.5) < 5 * 15 / math.sqrt(12 * 64)
        dt = torch.nn.functional.softplus(kda.dt_bias.detach().double()).log()
        low, high = math.log(1e-3), math.log(1e-1)
        assert dt.min() >= low - 1e-4
        assert dt.max() <= high + 1e-4
        assert abs(dt.mean().item() - (low + high) / 2) < 5 * (high - low) / math.sqrt(12 * 4096)
        assert abs(dt.std().item() - (high - low) / math.sqrt(12)) < 0.05
        assert (kda.o_norm.weight == 1).all()
        for conv in (kda.q_conv1d, kda.k_conv1d, kda.v_conv1d):
            assert abs(conv.weight.std().item() - 0.02) < 5 * 0.02 / math.sqrt(2 * conv.weight.numel())
    assert not torch.equal(kda_of(model, 0).dt_bias, kda_of(model, 1).dt_bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_first_forward_is_finite_whatever_the_text(tiny_config: Callable[..., ModelConfig], dtype: Any) -> None:
    model = build(tiny_config(**HYBRID, max_position_embeddings=2048).replace(initializer_range=0.006)).to(dtype)
    for tokens in (text(1, 1), torch.zeros(1, 1500, dtype=torch.int64), text(2, 300)):
        loss = model.loss(tokens, tokens)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
