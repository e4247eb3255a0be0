"""Muon is what the paper says: against torch.optim.Muon, a decomposition, and its own definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moonlet.config import ModelConfig
from moonlet.config.recipe import OptimSettings
from moonlet.model.init import build
from moonlet.ops import newton_schulz as ns
from moonlet.ops.dispatch import force
from moonlet.optim.muon import Muon
from moonlet.optim.optimizer import build_optimizer
from tests.train import tiny

SHAPES = [(8, 8), (63, 100), (100, 63), (1, 7), (3, 16, 40)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["reference", "batched"])
def test_singular_values_come_near_one(shape: tuple[int, ...], kind: str) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = torch.linalg.svdvals(getattr(ns, kind)(x))
    # From a spread of singular values, those that are not tiny beside the norm end in the band the coefficients give.
    inside = torch.linalg.svdvals(x) / torch.linalg.matrix_norm(x)[..., None] > 0.02
    assert (out[inside] > 0.66).all()
    assert (out[inside] < 1.16).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_batched_equals_reference_to_the_precision_of_bf16(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    fast, law = ns.batched(x), ns.reference(x)
    assert (fast - law).norm() / law.norm() < 0.04


def test_zero_stays_zero() -> None:
    assert torch.equal(ns.batched(torch.zeros(2, 4, 5)), torch.zeros(2, 4, 5))


def test_a_plain_matrix_moves_as_torch_moves_it() -> None:
    ours, theirs = nn.Linear(24, 40), nn.Linear(24, 40)  # the biases, without gradients, stay as they are
    theirs.load_state_dict(ours.state_dict())
    muon = Muon(ours, OptimSettings(weight_decay=0.1))
    oracle = torch.optim.Muon(
        [theirs.weight], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        gradient = torch.randn(40, 24, generator=generator)
        ours.weight.grad, theirs.weight.grad = gradient.clone(), gradient.clone()
        muon.step(0.02)
        oracle.step()
    moved = (ours.weight - theirs.weight).norm() / theirs.weight.norm()
    assert moved < 5e-3  # both in bf16, rounded at different places


def test_gate_up_and_every_expert_are_orthogonalised_apart() -> None:
    model = build(ModelConfig(**tiny.MODEL, vocab_size=32))
    weight = dict(model.named_parameters())["model.layers.1.mlp.experts.gate_up_proj"]
    before = weight.detach().clone()
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    # One expert's gate is a thousand times louder; a joint orthogonalisation would drown the others.
    half = weight.shape[1] // 2
    weight.grad[0, :half] *= 1000
    with force("newton_schulz", "reference"):
        Muon(model, OptimSettings(weight_decay=0.0)).step(1.0)
        for e in range(weight.shape[0]):
            for rows in (slice(0, half), slice(half, None)):
                law = ns.reference(weight.grad[e, rows] * 1.95) * 0.2 * max(half, weight.shape[2]) ** 0.5
                torch.testing.assert_close(before[e, rows] - weight.detach()[e, rows], law, rtol=1e-4, atol=1e-5)


def test_every_parameter_has_one_owner() -> None:
    model = build(ModelConfig(**tiny.MODEL, vocab_size=32))
    optimizer = build_optimizer(model, OptimSettings(kind="muon"))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer.step(0.01)
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())
    owned = {name.rsplit(".", 1)[0] for name in optimizer.state()}
    assert owned == set(before)
    momentum = {name for name in optimizer.state() if name.endswith(".momentum")}
    assert "model.embed_tokens.weight.momentum" not in momentum
    assert "lm_head.weight.momentum" not in momentum
    assert "model.layers.1.mlp.gate.weight.momentum" in momentum  # the router is a matrix like others
    assert not any("norm" in name for name in momentum)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_state_of_another_model_is_refused(kind: str) -> None:
    model = build(ModelConfig(**tiny.MODEL, vocab_size=32))
    other = build(ModelConfig(**(tiny.MODEL | {"num_hidden_layers": 3}), vocab_size=32))
    optimizer = build_optimizer(other, OptimSettings(kind=kind))
    for p in other.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step(0.01)
    with pytest.raises(ValueError, match="does not fit this model"):
        build_optimizer(model, OptimSettings(kind=kind)).load_state(optimizer.state())
