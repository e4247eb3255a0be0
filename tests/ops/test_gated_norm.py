"""The gated norm: the tiled form is the plain one, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moonlet.ops import tiles
from moonlet.ops.dispatch import force
from moonlet.ops.gated_norm import gated_norm
from moonlet.ops.native import library


def inputs(N: int, K: int = 6, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(N)
    o, gate = (torch.randn(2, N, 3, K, generator=generator).to(dtype) for _ in range(2))
    return [o, gate, torch.randn(K, generator=generator) + 1]


@pytest.mark.parametrize("elements", [5, 100, 2**30])
@pytest.mark.parametrize("N", [1, 2, 63, 100])
def test_every_form_is_the_law_in_value_and_gradient(N: int, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_ELEMENTS", elements)
    given = [x.requires_grad_() for x in inputs(N)]
    found = []
    for name in ["reference", "tiled"] + ["native"] * (library("kda") is not None):
        with force("gated_norm", name):
            y = gated_norm(*given, 1e-5)
        found.append([y, *torch.autograd.grad(y, given, torch.cos(torch.arange(float(y.numel()))).view_as(y))])
    for want, *others in zip(*found, strict=True):
        for got in others:
            assert (got - want).abs().max() <= 2e-6 * (1 + want.abs().max())


def test_gradients_in_fp64() -> None:
    given = [x.double().requires_grad_() for x in inputs(3)]
    assert torch.autograd.gradcheck(lambda o, z, w: gated_norm(o, z, w, 1e-5), given)


def test_bf16_is_the_fp32_result_rounded_once() -> None:
    o, gate, weight = inputs(40, dtype=torch.bfloat16)
    assert torch.equal(gated_norm(o, gate, weight, 1e-5), gated_norm(o.float(), gate, weight, 1e-5).bfloat16())


def test_extreme_gates_and_empty_heads_stay_finite() -> None:
    o, gate, weight = inputs(4)
    given = [torch.zeros_like(o), gate * 1e4, weight]
    given = [x.requires_grad_() for x in given]
    y = gated_norm(*given, 1e-5)
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), given))
