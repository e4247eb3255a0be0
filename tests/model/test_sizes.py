"""The sizes that "Kimi K2 from scratch" examples use run as they are written there, and the full size is described."""

from __future__ import annotations

import math

import torch

from moonlet.config import ModelConfig, preset
from moonlet.model.count import count
from moonlet.model.init import build

EXAMPLE = ModelConfig(
    vocab_size=10_000,
    hidden_size=512,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=8,
    q_lora_rank=256,
    kv_lora_rank=128,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
    intermediate_size=1024,
    moe_intermediate_size=256,
    n_routed_experts=16,
    num_experts_per_tok=4,
    max_position_embeddings=1024,
    dtype="float32",
)


def test_the_usual_example_runs_forward_and_backward_on_a_cpu() -> None:
    model = build(EXAMPLE)
    tokens = torch.randint(10_000, (1, 1025), generator=torch.Generator().manual_seed(0))
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    assert abs(loss.item() - math.log(10_000)) < 0.3
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_it_runs_with_grouped_queries() -> None:
    model = build(EXAMPLE.replace(kv_lora_rank=None, num_key_value_heads=2))
    tokens = torch.randint(10_000, (1, 1024), generator=torch.Generator().manual_seed(0))
    assert model(tokens).shape == (1, 1024, 10_000)
    assert model.config.head_dim == 64


def test_the_full_size_is_built_without_memory() -> None:
    model = build("kimi-k2", device="meta")
    assert len(model.model.layers) == 61
    assert model.config.n_routed_experts == 384
    assert sum(p.numel() for p in model.parameters()) > 1e12
    assert count(preset("kimi-k2")).total > 1e12
