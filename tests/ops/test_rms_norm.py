"""The fused RMSNorm equals PyTorch's in value and gradient, with the casts in their order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moonlet.ops.dispatch import implementation
from moonlet.ops.native import library
from moonlet.ops.rms_norm import rms_norm

pytestmark = pytest.mark.skipif(library("norm") is None, reason="no C++ compiler here")


def results(name: str, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    out = implementation("rms_norm", name)(*leaves, 1e-6)
    d = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return (out, *torch.autograd.grad(out, leaves, d))


def draw(rows: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(rows + width)
    return torch.randn(rows, width, generator=g).to(dtype), torch.randn(width, generator=g).to(dtype)


@pytest.mark.parametrize("width", [1, 15, 16, 63, 100])
@pytest.mark.parametrize("rows", [0, 1, 63, 300])
def test_equals_the_law(rows: int, width: int) -> None:
    for a, b in zip(*(results(name, *draw(rows, width)) for name in ("native", "reference")), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-5 if width > 1 else 1e-3)


def test_bf16_values_have_the_laws_bits() -> None:
    (a, *da), (b, *db) = (results(name, *draw(200, 100, torch.bfloat16)) for name in ("native", "reference"))
    assert (a != b).float().mean() < 2e-3  # sums in another order may round otherwise
    torch.testing.assert_close(da[0], db[0], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(da[1], db[1], rtol=2e-2, atol=2e-1)


@pytest.mark.parametrize("size", [1e-20, 1e-4, 1e8])
def test_extreme_sizes(size: float) -> None:
    x, weight = draw(20, 33)
    for a, b in zip(*(results(name, x * size, weight) for name in ("native", "reference")), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_part_of_a_wider_matrix(dtype: torch.dtype) -> None:
    wide, weight = torch.randn(4, 5, 50).to(dtype).requires_grad_(), torch.ones(33)
    out = rms_norm(wide[..., :33], weight, 1e-6)
    torch.testing.assert_close(out, rms_norm(wide[..., :33].contiguous(), weight, 1e-6), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(out.float().square().sum(), wide)
    assert (gradient[..., 33:] == 0).all()


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results("native", *draw(1000, 100)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
