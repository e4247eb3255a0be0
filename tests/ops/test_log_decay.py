"""The logarithms of the decays: the kernel is the plain form, in value and gradient, from no decay to a great one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moonlet.ops.dispatch import force
from moonlet.ops.log_decay import log_decay
from moonlet.ops.native import library

pytestmark = pytest.mark.skipif(library("kda") is None, reason="the kernel needs a C++ compiler")


def draw(H: int, K: int, dtype: torch.dtype = torch.float32, size: float = 3.0) -> list[Tensor]:
    gen = torch.Generator().manual_seed(K)
    f = (torch.randn(2, 75, H * K, generator=gen) * size).to(dtype)
    return [f, torch.randn(1, 1, H, 1, generator=gen), torch.randn(H * K, generator=gen)]


def results(name: str, given: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in given]
    with force("log_decay", name):
        g = log_decay(*leaves)
    weights = torch.cos(torch.arange(float(g.numel()))).view_as(g)
    return [g.detach(), *torch.autograd.grad(g, leaves, weights)]


@pytest.mark.parametrize(("H", "K"), [(1, 1), (3, 6), (2, 33), (4, 64)])
@pytest.mark.parametrize("size", [1e-3, 3.0, 30.0])
def test_the_kernel_is_the_law_in_value_and_gradient(H: int, K: int, size: float) -> None:
    given = draw(H, K, size=size)
    given[2] *= min(size, 1)
    exact = results("reference", [x.double() for x in given])
    # Sums over all tokens lose a little more.
    for got, want, off in zip(results("native", given), exact, (2e-6, 2e-6, 3e-5, 3e-5), strict=True):
        assert got.dtype == torch.float32
        assert (got - want).abs().max() <= off * (1 + want.abs().max())


def test_small_decays_keep_all_their_digits() -> None:
    f, a_log, bias = draw(2, 16)
    f = -f.abs() * 3  # softplus is about e^x, down to e^-40
    exact = log_decay(f.double(), a_log.double(), bias.double())
    with force("log_decay", "native"):
        found = log_decay(f, a_log, bias).double()
    # The sum of f and its bias is rounded to fp32, which e^x makes an error of its own size.
    assert ((found - exact).abs() <= 1e-5 * exact.abs()).all()


def test_bf16_is_the_fp32_result_from_the_same_numbers() -> None:
    f, *rest = draw(4, 64, torch.bfloat16)
    g, d_f, *others = results("native", [f, *rest])
    wide_g, wide_d_f, *wide = results("native", [f.float(), *rest])
    assert torch.equal(g, wide_g)
    assert torch.equal(d_f, wide_d_f.bfloat16())
    assert all(torch.equal(a, b) for a, b in zip(others, wide, strict=True))


def test_extreme_inputs_stay_finite() -> None:
    f, a_log, bias = draw(2, 16)
    assert all(x.isfinite().all() for x in results("native", [f.sign() * 1e30, a_log, bias]))


def test_bits_do_not_depend_on_threads() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(results("native", draw(4, 64)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
