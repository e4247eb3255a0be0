"""The estimate of activations against what autograd really keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moonlet.config import LinearAttention, ModelConfig
from moonlet.config.sections import OptimSettings
from moonlet.model.count import shapes
from moonlet.model.init import build
from moonlet.optim.optimizer import build_optimizer
from moonlet.train.memory import activations, training_memory
from tests.conftest import LINEAR

CPU = torch.device("cpu")
# States that weigh: four heads of 48, a state kept every 352 tokens.
WIDE: dict[str, Any] = LINEAR | {"linear_attn_config": LinearAttention(48, 4, (1, 2, 3)), "num_hidden_layers": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "mla": {},
    "one query matrix": {"q_lora_rank": None},
    "dense": {"n_routed_experts": 0, "n_shared_experts": 0},
    "grouped queries": {"kv_lora_rank": None, "num_key_value_heads": 2, "head_dim": 24},
    "kimi linear": LINEAR,
    "wide delta attention": WIDE,
    "many experts": {"n_routed_experts": 32, "num_experts_per_tok": 8},
}


def kept(config: ModelConfig, batch: int, seq_len: int, dtype: torch.dtype) -> int:
    """Bytes of all storages that one forward saves for its backward, weights and their copies left out."""
    model = build(config).train()
    model.compute_dtype = dtype
    weights = {tuple(p.shape) for p in model.parameters()}
    weights |= {shape[::-1] for shape in weights}
    storages: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        # Copies of weights are recognised by their shape; tokens come in a number that no weight has.
        if tuple(t.shape) not in weights and tuple(t.shape[-2:]) not in {s[-2:] for s in weights}:
            storages[t.untyped_storage().data_ptr()] = (t.untyped_storage().nbytes(), t)
        return t

    ids = torch.randint(0, config.vocab_size, (batch, seq_len), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model.loss(ids, ids, (ids == 0).cumsum(1))
    return sum(size for size, _ in storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize(("batch", "seq_len"), [(3, 130), (1, 320)])
def test_activations_are_what_autograd_keeps(
    tiny_config: Callable[..., ModelConfig], changes: dict[str, Any], dtype: torch.dtype, batch: int, seq_len: int
) -> None:
    config = tiny_config(hidden_size=64, intermediate_size=120, moe_intermediate_size=48, vocab_size=97, **changes)
    assert activations(config, batch, seq_len, dtype, CPU) == pytest.approx(
        kept(config, batch, seq_len, dtype), rel=0.15
    )


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("changes", [{}, LINEAR], ids=["mla", "kimi linear"])
def test_weights_and_optimizer_are_exact(
    tiny_config: Callable[..., ModelConfig], kind: str, changes: dict[str, Any]
) -> None:
    config = tiny_config(**changes)
    memory = training_memory(
        config, shapes(config), optimizer=kind, batch=1, seq_len=8, dtype=torch.float32, device=CPU
    )
    model = build(config)
    optimizer = build_optimizer(model, OptimSettings(kind=kind))
    ids = torch.zeros(1, 8, dtype=torch.int64)
    model.loss(ids, ids).backward()
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    optimizer.step(1e-3)
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    assert memory.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert memory.optimizer == sum(t.nbytes for name, t in optimizer.state().items() if not name.endswith(".step"))
