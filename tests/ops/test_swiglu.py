"""The fused SwiGLU equals PyTorch's operators in value and gradient, also on halves of one matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moonlet.ops.dispatch import implementation
from moonlet.ops.native import library
from moonlet.ops.swiglu import swiglu, swiglu_backward

pytestmark = pytest.mark.skipif(library("swiglu") is None, reason="no C++ compiler here")


def draw(*shape: int, dtype: torch.dtype = torch.float32, size: float = 4.0) -> list[Tensor]:
    g = torch.Generator().manual_seed(sum(shape))
    return [(size * torch.randn(*shape, generator=g)).to(dtype) for _ in range(3)]


def results(name: str, gate: Tensor, up: Tensor, d: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in (gate, up)]
    out = implementation("swiglu", name)(*leaves)
    return (out, *torch.autograd.grad(out, leaves, d))


@pytest.mark.parametrize("width", [1, 15, 16, 63, 100])
@pytest.mark.parametrize("shape", [(1,), (0,), (2, 3)])
def test_equals_the_law(width: int, shape: tuple[int, ...]) -> None:
    for a, b in zip(*(results(name, *draw(*shape, width)) for name in ("native", "reference")), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)


def test_bf16_values_have_the_laws_bits_and_gradients_its_rounding() -> None:
    (a, *da), (b, *db) = (results(name, *draw(50, 33, dtype=torch.bfloat16)) for name in ("native", "reference"))
    assert (a != b).float().mean() < 1e-3  # an exponential that differs in its last bit may round otherwise
    for x, y in zip(da, db, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_gates(dtype: torch.dtype) -> None:
    gate = torch.tensor([-1e4, -200.0, -88.0, -0.0, 0.0, 88.0, 200.0, 1e4, 1e30, -1e30], dtype=dtype)
    for x, y in zip(*(results(name, gate, gate / 2, gate.sign()) for name in ("native", "reference")), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-2 if dtype == torch.bfloat16 else 2e-6, atol=1e-30)
    nan = torch.full((1,), float("nan"), dtype=dtype)
    assert swiglu(nan, nan).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_halves_of_one_matrix(dtype: torch.dtype) -> None:
    joint = torch.randn(7, 40).to(dtype)
    gate, up = joint.chunk(2, 1)
    d = torch.randn(7, 20).to(dtype)
    value, *expected = results("reference", gate, up, d)
    torch.testing.assert_close(swiglu(gate, up), value)
    gradient = torch.full_like(joint, float("nan"))
    swiglu_backward(d, gate, up, *gradient.chunk(2, 1))
    torch.testing.assert_close(gradient, torch.cat(expected, 1))
    swiglu_backward(d, gate, up, gate, up)  # in place of its inputs
    torch.testing.assert_close(joint, gradient)


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results("native", *draw(300, 100)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
