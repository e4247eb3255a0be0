"""Muon is what the paper says: against torch.optim.Muon and its own definition, alone and in whole models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moonlet.config import ModelConfig
from moonlet.config.sections import OptimSettings
from moonlet.model.init import build
from moonlet.ops import newton_schulz as ns
from moonlet.ops.dispatch import force
from moonlet.optim.muon import Muon
from moonlet.optim.optimizer import build_optimizer
from tests.conftest import GQA
from tests.train import tiny


def fill_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Matrices(nn.Module):
    """Matrices of several shapes, two of one."""

    SHAPES = ((24, 40), (40, 24), (24, 40), (32, 32), (1, 20))

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.all = nn.ParameterList([torch.randn(shape, generator=generator) / 5 for shape in self.SHAPES])


def test_matrices_move_as_torch_moves_them_for_fifty_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch's Muon always multiplies in bf16; both are held to fp32 here, where a difference would be one of formula.
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.float)
    ours, theirs = Matrices(), Matrices()
    start = weights(ours)
    muon = Muon(ours, OptimSettings(weight_decay=0.1))
    oracle = torch.optim.Muon(
        theirs.parameters(), lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(50):
        fill_gradients(ours, step)
        fill_gradients(theirs, step)
        lr = 0.02 * (1 - step / 60)
        oracle.param_groups[0]["lr"] = lr
        muon.step(lr)
        oracle.step()
    moved = weights(theirs)
    for name, p in weights(ours).items():
        assert (p - moved[name]).norm() <= 1e-5 * moved[name].norm()
        assert (moved[name] - start[name]).norm() > 0.2 * start[name].norm()  # it is no small thing to agree on


def test_in_bf16_it_stays_near_torch() -> None:
    ours, theirs = Matrices(), Matrices()
    ours.compute_dtype = torch.bfloat16  # type: ignore[assignment]
    muon = Muon(ours, OptimSettings(weight_decay=0.1))
    oracle = torch.optim.Muon(theirs.parameters(), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        fill_gradients(ours, step)
        fill_gradients(theirs, step)
        muon.step(0.02)
        oracle.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert 0 < (p - q).norm() < 5e-3 * q.norm()  # rounded at different places


def test_the_products_follow_the_models_compute_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    law = ns.newton_schulz
    monkeypatch.setattr("moonlet.optim.muon.newton_schulz", lambda x, steps, dtype: seen.append(dtype) or law(x, steps))
    model = build(ModelConfig(**tiny.MODEL, vocab_size=32))
    muon = Muon(model, OptimSettings())
    for dtype in (None, torch.bfloat16, torch.float32):
        model.compute_dtype = dtype
        fill_gradients(model, 0)
        muon.step(1e-3)
        assert set(seen) == {dtype}
        seen.clear()


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


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_what_is_worked_on_at_once_does_not_change_the_step(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    results, seen = [], []
    law = ns.newton_schulz
    monkeypatch.setattr("moonlet.optim.muon.newton_schulz", lambda x, *rest: seen.append(len(x)) or law(x, *rest))
    for size in (None, chunk):
        if size:
            monkeypatch.setattr("moonlet.optim.muon.chunk", lambda *_, size=size: size)
            seen.clear()
        model = build(ModelConfig(**tiny.MODEL, vocab_size=32))
        muon = Muon(model, OptimSettings())
        for step in range(2):
            fill_gradients(model, step)
            muon.step(0.01)
        results.append(weights(model) | muon.state())
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-5, atol=1e-6)
    assert max(seen) <= chunk


def heads_by_hand(name: str, p: Tensor, config: ModelConfig) -> list[tuple[slice, ...]]:
    """Where the matrices of a projection of queries, keys or values begin and end, one head after the other."""
    if config.kv_lora_rank is None:
        parts = [config.head_dim]
    else:
        key = config.qk_nope_head_dim
        parts = [key, config.v_head_dim] if "kv_b_proj" in name else [key + config.qk_rope_head_dim]
    rows, begin = [], 0
    while begin < p.shape[0]:
        for part in parts:
            rows.append((slice(begin, begin + part),))
            begin += part
    assert begin == p.shape[0]
    return rows


@pytest.mark.parametrize(
    ("changes", "cut"),
    [
        ({}, {"q_b_proj", "kv_b_proj"}),
        ({"q_lora_rank": None}, {"q_proj", "kv_b_proj"}),
        (GQA, {"q_proj", "k_proj", "v_proj"}),
    ],
    ids=["mla", "mla without q_lora", "gqa"],
)
def test_per_head_equals_separate_matrices(
    tiny_model: Callable[..., Any], changes: dict[str, Any], cut: set[str]
) -> None:
    model, whole = tiny_model(**changes), tiny_model(**changes)
    before = weights(model)
    optimizers = (
        Muon(model, OptimSettings(weight_decay=0.0, muon_per_head=True)),
        Muon(whole, OptimSettings(weight_decay=0.0)),
    )
    for m, muon in zip((model, whole), optimizers, strict=True):
        fill_gradients(m, 0)
        # One head is a thousand times louder; together with it the others would be drowned.
        for layer in m.model.layers:
            for name in cut:
                getattr(layer.self_attn, name).weight.grad[:3] *= 1000
        muon.step(1.0)
    seen = set()
    for name, p in model.named_parameters():
        kind = name.split(".")[-2]
        if kind not in cut:
            assert torch.equal(p, dict(whole.named_parameters())[name]), name
            continue
        seen.add(kind)
        for rows in heads_by_hand(name, p, model.config):
            assert p.grad is not None
            law = ns.reference(p.grad[rows] * 1.95)
            size = 0.2 * max(law.shape) ** 0.5
            torch.testing.assert_close(before[name][rows] - p.detach()[rows], law * size, rtol=1e-3, atol=1e-4)
    assert seen == cut


def test_every_parameter_has_one_owner() -> None:
    model = build(ModelConfig(**tiny.MODEL, vocab_size=32))
    optimizer = build_optimizer(model, OptimSettings(kind="muon"))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = weights(model)
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
@pytest.mark.parametrize("per_head", [False, True])
def test_a_resume_is_exact_to_the_bit(kind: str, per_head: bool) -> None:
    settings = OptimSettings(kind=kind, muon_per_head=per_head)
    straight, first = (build(ModelConfig(**tiny.MODEL, vocab_size=32)) for _ in range(2))
    optimizers = [build_optimizer(m, settings) for m in (straight, first)]
    for step in range(3):
        for model, optimizer in zip((straight, first), optimizers, strict=True):
            fill_gradients(model, step)
            optimizer.step(0.01)
    saved = {name: tensor.clone() for name, tensor in optimizers[1].state().items()}
    second = build(first.config, seed=1)
    second.load_state_dict(first.state_dict())
    resumed = build_optimizer(second, settings)
    resumed.load_state(saved)
    for step in range(3, 6):
        for model, optimizer in ((straight, optimizers[0]), (second, resumed)):
            fill_gradients(model, step)
            optimizer.step(0.01)
    assert all(torch.equal(p, q) for p, q in zip(straight.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(t, resumed.state()[name]) for name, t in optimizers[0].state().items())
    assert all(torch.equal(tensor, saved[name]) for name, tensor in first_state(optimizers[1]).items())  # its own copy


def first_state(optimizer: Any) -> dict[str, Tensor]:
    return dict(optimizer.state())


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_parameter_without_gradient_is_left_alone(kind: str) -> None:
    model = build(ModelConfig(**tiny.MODEL, vocab_size=32))
    optimizer = build_optimizer(model, OptimSettings(kind=kind))
    idle = {"model.layers.0.self_attn.o_proj.weight", "model.layers.1.mlp.experts.down_proj", "model.norm.weight"}
    for known in (False, True):  # before it ever had a gradient, and after
        if known:
            fill_gradients(model, 1)
            optimizer.step(0.01)
        fill_gradients(model, 2)
        for name, p in model.named_parameters():
            p.grad = None if name in idle else p.grad
        before = weights(model), {name: t.clone() for name, t in optimizer.state().items()}
        optimizer.step(0.01)
        for name, p in model.named_parameters():
            assert torch.equal(p, before[0][name]) == (name in idle), name
        for name, t in optimizer.state().items():
            quiet = name.rsplit(".", 1)[0] in idle
            assert not known or torch.equal(t, before[1][name]) == quiet, name
        # The state is whole all the same, and can be taken back.
        build_optimizer(model, OptimSettings(kind=kind)).load_state(optimizer.state())


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize(
    "change", [{"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"intermediate_size": 40}, {"kv_lora_rank": 12}]
)
def test_state_of_another_model_is_refused(kind: str, change: dict[str, Any]) -> None:
    model = build(ModelConfig(**tiny.MODEL, vocab_size=32))
    other = build(ModelConfig(**(tiny.MODEL | change), vocab_size=32))
    optimizer = build_optimizer(other, OptimSettings(kind=kind))
    fill_gradients(other, 0)
    optimizer.step(0.01)
    with pytest.raises(ValueError, match="the optimizer state does not fit this model: ") as caught:
        build_optimizer(model, OptimSettings(kind=kind)).load_state(optimizer.state())
    assert "\n" not in str(caught.value)


def test_state_of_another_optimizer_is_refused() -> None:
    model = build(ModelConfig(**tiny.MODEL, vocab_size=32))
    for mine, other in (("muon", "adamw"), ("adamw", "muon")):
        optimizer = build_optimizer(model, OptimSettings(kind=other))
        fill_gradients(model, 0)
        optimizer.step(0.01)
        with pytest.raises(ValueError, match="does not fit this model"):
            build_optimizer(model, OptimSettings(kind=mine)).load_state(optimizer.state())


def test_momentum_and_steps_are_settings() -> None:
    moved = {}
    for name, settings in {
        "usual": OptimSettings(),
        "no momentum": OptimSettings(momentum=0.0),
        "one step": OptimSettings(ns_steps=1),
    }.items():
        model = Matrices()
        before = model.all[0].detach().clone()
        muon = Muon(model, settings)
        for step in range(2):
            fill_gradients(model, step)
            muon.step(1.0)
        moved[name] = before, model.all[0].detach(), model.all[0].grad
    assert not torch.equal(moved["usual"][1], moved["no momentum"][1])
    assert not torch.equal(moved["usual"][1], moved["one step"][1])


def test_without_momentum_only_the_last_gradient_counts() -> None:
    model = Matrices()
    muon = Muon(model, OptimSettings(momentum=0.0, weight_decay=0.0, ns_steps=3))
    for step in range(2):
        before = model.all[0].detach().clone()
        fill_gradients(model, step)
        muon.step(1.0)
    gradient = model.all[0].grad
    assert gradient is not None
    law = ns.reference(gradient, 3) * 0.2 * 40**0.5
    torch.testing.assert_close(before - model.all[0].detach(), law, rtol=1e-4, atol=1e-5)
