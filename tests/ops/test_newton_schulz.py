"""Newton-Schulz against its law, a decomposition, and inputs that are not nice."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from moonlet.ops import newton_schulz as ns
from moonlet.ops.dispatch import force
from moonlet.ops.newton_schulz import batched, newton_schulz, reference

SHAPES = [(8, 8), (63, 100), (100, 63), (1, 7), (7, 1), (1, 1), (3, 16, 40), (2, 3, 40, 16), (0, 4, 5), (3, 0, 5)]
BANDED = [(64, 64), (24, 160), (160, 24), (3, 40, 56), (1, 7), (7, 1)]
# The band of the published coefficients. A product in bf16 is wrong by up to 2^-9, and three follow one another in a
# step; what the last step does not contract shows as so much.
BAND, BF16 = (0.68, 1.14), 0.03
NATIVE = ["native"] if ns._is_quicker() else []


def draw(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spread(rows: int, columns: int, lowest: float) -> Tensor:
    """A matrix whose singular values fall evenly in the logarithm from 1 to `lowest`."""
    small = min(rows, columns)
    u = torch.linalg.qr(draw((rows, rows), 1)).Q[:, :small]
    v = torch.linalg.qr(draw((columns, columns), 2)).Q[:, :small]
    return u * torch.logspace(0, math.log10(lowest), small) @ v.T


def inside(x: Tensor, out: Tensor, allowance: float = 0.0) -> bool:
    """Singular values of `out` in the band, wherever those of `x` exceed 2% of its Frobenius norm."""
    for one, result in zip(x.flatten(0, -3) if x.dim() > 2 else [x], out.reshape(-1, *out.shape[-2:]), strict=True):
        u, s, vh = torch.linalg.svd(one.double(), full_matrices=False)
        kept = s / s.norm() > 0.02
        # The singular vectors stay: the new values are those in the old ones' directions.
        values = (u.T @ result.double() @ vh.T).diagonal()[kept]
        if not ((values > BAND[0] - allowance) & (values < BAND[1] + allowance)).all():
            return False
    return True


@pytest.mark.parametrize("shape", BANDED)
@pytest.mark.parametrize(
    ("kind", "dtype", "allowance"),
    [
        ("reference", None, 0.0),
        ("batched", torch.float64, 0.0),
        ("batched", torch.float32, 0.0),
        ("batched", torch.bfloat16, BF16),
    ],
)
def test_singular_values_come_into_the_band(
    shape: tuple[int, ...], kind: str, dtype: torch.dtype | None, allowance: float
) -> None:
    for seed in range(3):
        x = draw(shape, seed, torch.float64)
        with force("newton_schulz", kind):
            assert inside(x, newton_schulz(x, dtype=dtype), allowance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(60, 60), (24, 90), (90, 24)])
def test_spread_singular_values_come_into_the_band(rows: int, columns: int, dtype: torch.dtype) -> None:
    x = spread(rows, columns, 1e-3)
    assert inside(x, batched(x, dtype=dtype), BF16 if dtype == torch.bfloat16 else 0.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 5])
def test_batched_equals_the_law(shape: tuple[int, ...], steps: int) -> None:
    x = draw(shape, 1)
    before = x.clone()
    for dtype, tolerance in ((torch.float64, 1e-6), (None, 1e-4), (torch.bfloat16, 0.04)):
        fast, law = batched(x, steps, dtype), reference(x, steps)
        assert fast.shape == law.shape == x.shape
        assert fast.dtype == law.dtype == x.dtype
        assert (fast - law).norm() <= tolerance * law.norm()
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 12, 30), (5, 30, 12), (2, 3, 9, 9), (4, 1, 6)])
def test_a_stack_equals_its_slices(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(shape, 2) * torch.logspace(-3, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))  # no slice drowns another
    whole = batched(x, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for index in torch.cartesian_prod(*[torch.arange(n) for n in shape[:-2]]).view(-1, len(shape) - 2).tolist():
        one = whole[tuple(index)]
        assert (one - batched(x[tuple(index)], dtype=dtype)).norm() <= tolerance * one.norm()
    monkeypatch.setattr(ns, "_CPU_ELEMENTS", 2 * shape[-1] * shape[-2])  # in turns of two: the last has one
    assert (whole - batched(x, dtype=dtype)).norm() <= tolerance * whole.norm()


def test_layout_does_not_matter() -> None:
    x = draw((4, 10, 6), 3)
    torch.testing.assert_close(batched(x.mT), batched(x.mT.contiguous()))
    torch.testing.assert_close(batched(x[::2, 1:8]), batched(x[::2, 1:8].contiguous()))
    torch.testing.assert_close(batched(x.mT), batched(x).mT, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["reference", "batched", *NATIVE])
@pytest.mark.parametrize(
    "x",
    [
        pytest.param(spread(40, 40, 1e-12), id="ill-conditioned"),
        pytest.param(draw((40, 1)) @ draw((1, 30)), id="rank one"),
        pytest.param(torch.ones(30, 40), id="all equal"),
        pytest.param(draw((1, 50)), id="one row"),
        pytest.param(draw((50, 1)), id="one column"),
        pytest.param(torch.zeros(4, 5), id="zero"),
        pytest.param(torch.eye(4, 9) * 1e-30, id="nearly zero"),
        pytest.param(draw((20, 30)) * 1e20, id="huge"),
        pytest.param(draw((20, 30)) * 1e37, id="as large as fp32 holds"),
        pytest.param(draw((20, 30)) * 1e-20, id="tiny"),
    ],
)
def test_whatever_comes_the_result_is_finite_and_bounded(x: Tensor, kind: str, dtype: torch.dtype) -> None:
    with force("newton_schulz", kind):
        out = newton_schulz(x, dtype=dtype)
    assert out.isfinite().all()
    assert torch.linalg.matrix_norm(out.double(), 2) < BAND[1] + BF16


def test_size_does_not_matter_until_the_norm_is_lost_in_what_is_added_to_it() -> None:
    x = draw((20, 30), 4)
    for factor in (1e20, 1e-3):
        torch.testing.assert_close(batched(x * factor), batched(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(batched(torch.zeros(2, 4, 5)), torch.zeros(2, 4, 5))
    assert batched(x * 1e-20).abs().max() < 1e-9  # as the law has it: nothing is made out of nothing


def test_rank_one_keeps_its_direction() -> None:
    u, v = draw((40, 1), 5), draw((1, 30), 6)
    out = batched(u @ v)
    direction = (u / u.norm()) @ (v / v.norm())
    torch.testing.assert_close(out, direction * (out * direction).sum(), rtol=1e-3, atol=1e-4)
    assert 0.68 < (out * direction).sum() < 1.14


def test_few_matrices_at_once_bound_the_memory() -> None:
    device = torch.device("meta")  # stands for any that is not a CPU
    assert ns.chunk(4096, 4096, device) * 4096 * 4096 <= 2**27
    assert ns.chunk(100_000, 100_000, device) == 1
    assert ns.chunk(0, 5, device) > 0


@pytest.mark.skipif(not NATIVE, reason="no kernel for this machine")
@pytest.mark.parametrize("shape", [*SHAPES, (32, 32), (5, 96, 200), (200, 96), (3, 97, 131)])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_native_equals_the_law_as_batched_does(shape: tuple[int, ...], steps: int) -> None:
    x = draw(shape, 1)
    before = x.clone()
    fast, law = ns.native(x, steps), reference(x, steps)
    assert fast.shape == law.shape
    assert fast.dtype == torch.float32
    assert (fast - law).norm() <= (0.04 if steps else 0.004) * law.norm()
    assert torch.equal(x, before)
    if fast.numel():
        assert torch.equal(ns.native(x.mT.contiguous().mT, steps), fast)


@pytest.mark.skipif(not NATIVE, reason="no kernel for this machine")
def test_native_gives_the_same_bits_whatever_the_company_and_the_threads() -> None:
    x = draw((5, 100, 120), 7)
    whole = ns.native(x)
    assert torch.equal(ns.native(x[3:4])[0], whole[3])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(ns.native(x), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not NATIVE, reason="no kernel for this machine")
def test_native_is_chosen_for_masters_in_fp32_and_products_in_bf16() -> None:
    threads = torch.get_num_threads()
    for shape, kind in (((threads, 128, 96), "native"), ((threads, 128, 24), "batched")):
        assert ns.choose(draw(shape), torch.bfloat16) == kind
        assert ns.choose(draw(shape)) == "batched"
        assert ns.choose(draw(shape, dtype=torch.float64), torch.bfloat16) == "batched"
