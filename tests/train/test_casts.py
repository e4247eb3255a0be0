"""One copy of a weight a step computes what a cast at each use does, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moonlet.config.sections import OptimSettings
from moonlet.model.model import CausalLM
from moonlet.ops.dispatch import force
from moonlet.optim.optimizer import build_optimizer
from moonlet.train.casts import cast_once
from tests.conftest import GQA, HYBRID
from tests.train import tiny

KINDS: dict[str, dict[str, Any]] = {"k2": {}, "gqa": GQA, "linear": HYBRID, "tied": {"tie_word_embeddings": True}}


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [tiny.batch(seed, rows=1 + seed % 2) for seed in range(count)]


def make(tiny_model: Callable[..., Any], **changes: Any) -> CausalLM:
    model: CausalLM = tiny_model(vocab_size=64, **changes)
    model.compute_dtype = torch.bfloat16
    return model


def gradients(model: CausalLM, how: str, micro_batches: int) -> dict[str, torch.Tensor]:
    model.zero_grad()
    with force("weight_cast", how), cast_once(model):
        for inputs, targets in batches(micro_batches):
            model.loss(inputs, targets).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_gradients_are_the_same_bits_in_fp32(tiny_model: Callable[..., Any], kind: str, micro_batches: int) -> None:
    model = make(tiny_model, **KINDS[kind])
    once, each = gradients(model, "once", micro_batches), gradients(model, "each", micro_batches)
    assert once.keys() == each.keys() == dict(model.named_parameters()).keys()
    for name, gradient in each.items():
        assert once[name].dtype == torch.float32
        assert torch.equal(once[name], gradient), name


def test_fifty_steps_are_the_same_bits(tiny_model: Callable[..., Any]) -> None:
    losses: dict[str, list[float]] = {}
    for how in ("once", "each"):
        model = make(tiny_model)
        optimizer = build_optimizer(model, OptimSettings())
        with force("weight_cast", how):
            losses[how] = [tiny.step(model, batches(2), optimizer, lr=1e-3).loss for _ in range(50)]
    assert losses["once"] == losses["each"]


def test_each_master_is_cast_once_a_step(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(tiny_model)
    seen: dict[str, set[int]] = {}

    def look(module: torch.nn.Module, *_: Any) -> None:
        weight = module.weight
        assert weight.dtype == torch.bfloat16
        seen.setdefault(names[module], set()).add(weight.data_ptr())

    names = {m: n for n, m in model.named_modules() if n.endswith("o_proj")}
    for module in names:
        module.register_forward_pre_hook(look)
    tiny.step(model, batches(3))
    assert len(seen) == len(names) == 3
    assert all(len(places) == 1 for places in seen.values())


def test_parameters_are_the_masters_again_after_a_step_and_after_one_that_failed(
    tiny_model: Callable[..., Any],
) -> None:
    model = make(tiny_model)
    before = {name: id(p) for name, p in model.named_parameters()}
    tiny.step(model, batches(2))
    assert {name: id(p) for name, p in model.named_parameters()} == before
    with pytest.raises(ValueError, match="tokens are"):
        tiny.step(model, [(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))])
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_frozen_weights_stay_without_a_gradient(tiny_model: Callable[..., Any]) -> None:
    model = make(tiny_model)
    frozen = model.model.layers[1].self_attn.o_proj.weight
    frozen.requires_grad_(False)
    found = gradients(model, "once", 2)
    assert "model.layers.1.self_attn.o_proj.weight" not in found
    assert frozen.grad is None
    assert len(found) == len(dict(model.named_parameters())) - 1


def test_a_model_that_computes_in_its_own_dtype_is_left_alone(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(vocab_size=64)
    weight = model.lm_head.weight
    with cast_once(model):
        assert model.lm_head.weight is weight
