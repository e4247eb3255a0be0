"""Weights of few bits: every code is what its format says, and every product equals the law."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from moonlet.ops.dispatch import implementation, names
from moonlet.ops.experts import reference as experts_reference
from moonlet.ops.formats import int4
from moonlet.ops.low_bit import gathered, low_bit_experts, low_bit_linear, reference_experts, reference_linear
from moonlet.ops.low_bit_codes import CODES, SCALES, SCHEMES, Packed, Scheme, packed_shapes, quantize
from moonlet.ops.low_bit_native import FEW
from moonlet.ops.native import library, without_kernels

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
FOUR_BITS: tuple[Scheme, ...] = ("int4", "mxfp4")
needs_kernels = pytest.mark.skipif(library("low_bit") is None, reason="no compiler")


def drawn(scheme: Scheme, *shape: int, seed: int = 0) -> Packed:
    """Every code as likely as any other, under scales of two orders of magnitude."""
    g = torch.Generator().manual_seed(seed)
    *stack, out, width = shape
    codes, scale = packed_shapes(scheme, out, width)
    bits = torch.randint(256, (*stack, *codes[:-1], codes[-1] * CODES[scheme].itemsize), generator=g, dtype=torch.uint8)
    if scheme == "fp8":
        bits[bits % 128 == 127] = 0  # NaN
    if scheme == "mxfp4":
        scales = torch.randint(120, 128, (*stack, *scale), generator=g, dtype=torch.uint8)
    else:
        scales = (0.01 + torch.rand(*stack, *scale, generator=g)).to(SCALES[scheme])
    return Packed(scheme, bits.view(CODES[scheme]), scales, width)


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-300)).item()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (5, 128), (130, 70), (2, 3, 40)], ids=str)
def test_quantised_weights_are_near_and_of_the_published_shapes(scheme: Scheme, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    packed = quantize(weight, scheme)
    codes, scale = packed_shapes(scheme, *shape[-2:])
    assert (packed.codes.shape[-2:], packed.scale.shape[-2:]) == (codes, scale)
    assert (packed.codes.dtype, packed.scale.dtype) == (CODES[scheme], SCALES[scheme])
    assert packed.shape == weight.shape
    # Half a step: of int4 a fifteenth of the largest, whose own code is cut from 7.5 to 7; e2m1's 8 becomes 6.
    assert relative(packed.dequantize(), weight) <= {"int4": 0.07, "mxfp4": 0.26, "fp8": 0.04}[scheme]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [1e-34, 1e-30, 1e30, 1e38])
def test_extreme_weights_are_quantised_as_well_and_zeros_stay_zeros(scheme: Scheme, size: float) -> None:
    weight = torch.randn(160, 160, generator=torch.Generator().manual_seed(2)).clamp(-1, 1) * size
    weight[:, 128:] = 0  # of every scheme a group, or a block, of zeros
    got = quantize(weight, scheme).dequantize()
    assert relative(got / size, weight / size) <= {"int4": 0.08, "mxfp4": 0.26, "fp8": 0.05}[scheme]
    assert not got[:, 128:].any()


def test_mxfp4_rounds_ties_to_the_even_code_and_keeps_what_it_can_say() -> None:
    exact = torch.tensor([E2M1 + [-v for v in E2M1]]).repeat(1, 2)
    assert torch.equal(quantize(exact * 2.0**-20, "mxfp4").dequantize() * 2.0**20, exact)
    ties = torch.tensor([[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -5.0, 6.0]])
    assert quantize(ties, "mxfp4").dequantize().tolist() == [[0, 1, 1, 2, 2, 4, 4, -4, 6]]


def test_what_cannot_be_quantised() -> None:
    with pytest.raises(ValueError, match=r"no scheme 'int3' .*valid: int4, mxfp4, fp8"):
        quantize(torch.ones(2, 2), "int3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize(torch.tensor([[1.0, float("nan")]]), "int4")


# Products.


@pytest.fixture(params=["kernels", "PyTorch"])
def machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """With the kernels, and as where they cannot be built."""
    if request.param == "kernels":
        yield
        return
    with without_kernels():
        yield


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("out", "width"), [(1, 1), (3, 31), (17, 33), (8, 128), (13, 250), (37, 264)])
def test_product_equals_the_law(scheme: Scheme, out: int, width: int, machine: None) -> None:
    weight = drawn(scheme, out, width)
    for rows in (1, 2, 3, 4, 5, 50, FEW[torch.float32] + 1):
        x = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
        assert relative(low_bit_linear(x, weight), reference_linear(x, weight)) <= 2e-6
    assert low_bit_linear(x.view(-1, 3, width)[:, :2], weight).shape == (43, 2, out)
    assert low_bit_linear(x[:0], weight).shape == (0, out)


@needs_kernels
@pytest.mark.parametrize("scheme", FOUR_BITS)
def test_every_code_and_scale_in_the_kernels(scheme: Scheme) -> None:
    """One input at a time shows single numbers, which must be the law's to the bit."""
    if scheme == "int4":
        scales = torch.tensor([1.0, 1e-38, 9.2e-41, -3e37, 0.0, float("inf"), float("nan"), 1e-30]).bfloat16()
    else:
        scales = torch.arange(256, dtype=torch.uint8)
    codes = torch.arange(16).repeat_interleave(len(scales))[:, None].expand(-1, 129)  # (16 S, 129)
    if scheme == "int4":
        packed = int4.pack((codes - 8).to(torch.int8))
    else:
        codes = torch.nn.functional.pad(codes, (0, 1)).to(torch.uint8)
        packed = codes[:, ::2] | codes[:, 1::2] << 4
    weight = Packed(scheme, packed, scales.repeat(16)[:, None].expand(-1, 5).contiguous(), 129)
    want = weight.dequantize()
    for at in (0, 31, 127, 128):
        x = torch.zeros(1, 129)
        x[0, at] = 1.0
        got = low_bit_linear(x, weight)[0]
        finite = want[:, at].abs() < 3e38
        assert torch.equal(got[finite], want[finite, at])
        assert not got[~finite].isfinite().any()
    many = torch.eye(129).repeat(2, 1)[: FEW[torch.float32] + 1]
    got, finite = low_bit_linear(many, weight), want.isfinite().all(1)
    assert torch.equal(got[:, finite], want[finite].t()[: len(many)])


@needs_kernels
@pytest.mark.parametrize("scheme", FOUR_BITS)
def test_a_rows_product_is_its_own_to_the_bit(scheme: Scheme) -> None:
    weight, x = drawn(scheme, 45, 300), torch.randn(100, 300)
    together = low_bit_linear(x, weight)
    for i in (0, 1, 2, 47, 48, 99):
        assert torch.equal(low_bit_linear(x[i : i + 1], weight)[0], together[i])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_products_in_bf16_are_as_near_as_bf16(scheme: Scheme, machine: None) -> None:
    weight = drawn(scheme, 40, 200)
    for rows in (1, FEW[torch.bfloat16] + 1):
        x = torch.randn(rows, 200).bfloat16()
        y = low_bit_linear(x, weight)
        assert y.dtype == torch.bfloat16
        assert relative(y, x.float() @ weight.dequantize().t()) <= 2e-2


# Experts.

E, D, I = 8, 72, 33


def routed(N: int, A: int, spread: str = "random") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(N)
    index = torch.rand(N, E, generator=g).topk(A).indices
    if spread == "all to one":
        index = torch.arange(A).expand(N, A).contiguous()  # experts 0 .. A-1 get every token, the others none
    x, plus = torch.randn(2, N, D, generator=g)
    return x, index, torch.rand(N, A, generator=g), plus


@pytest.fixture(params=SCHEMES)
def stacks(request: pytest.FixtureRequest) -> tuple[Packed, Packed]:
    return drawn(request.param, E, 2, I, D), drawn(request.param, E, D, I)


def test_the_law_is_that_of_the_experts_dequantised(stacks: tuple[Packed, Packed]) -> None:
    x, index, weight, plus = routed(9, 3)
    whole = [torch.stack([stack[e].dequantize().view(-1, stack.width) for e in range(E)]) for stack in stacks]
    want = experts_reference(x, *whole, index, weight, plus)
    assert torch.equal(reference_experts(x, *stacks, index, weight, plus), want)


@pytest.mark.parametrize("N", [1, 2, 7, 63, 300])
@pytest.mark.parametrize("spread", ["random", "all to one"])
def test_experts_equal_the_law(N: int, spread: str, stacks: tuple[Packed, Packed], machine: None) -> None:
    for A in (1, 3):
        x, index, weight, plus = routed(N, A, spread)
        for extra in (None, plus):
            want = reference_experts(x, *stacks, index, weight, extra)
            assert relative(low_bit_experts(x, *stacks, index, weight, extra), want) <= 3e-6
    assert plus.equal(routed(N, A, spread)[3])


@pytest.mark.parametrize("name", sorted(set(names("low_bit_experts")) - {"native"}))
def test_each_implementation_without_kernels_equals_the_law(name: str, stacks: tuple[Packed, Packed]) -> None:
    x, index, weight, plus = routed(21, 3)
    want = reference_experts(x, *stacks, index, weight, plus)
    assert relative(implementation("low_bit_experts", name)(x, *stacks, index, weight, plus), want) <= 3e-6


def test_all_tokens_experts_at_once_equal_the_law(stacks: tuple[Packed, Packed]) -> None:
    for N, spread in ((1, "random"), (5, "random"), (5, "all to one")):
        x, index, weight, plus = routed(N, 3, spread)
        for extra in (None, plus):
            want = reference_experts(x, *stacks, index, weight, extra)
            assert relative(gathered(x, *stacks, index, weight, extra), want) <= 3e-6


def test_experts_in_bf16_are_as_near_as_bf16(stacks: tuple[Packed, Packed], machine: None) -> None:
    for N in (2, 100):
        x, index, weight, _ = routed(N, 3)
        want = reference_experts(x, *stacks, index, weight)
        got = low_bit_experts(x.bfloat16(), *stacks, index, weight)
        assert got.dtype == torch.bfloat16
        assert relative(got, want) <= 3e-2


def test_a_backward_says_that_packed_weights_cannot_be_trained(stacks: tuple[Packed, Packed]) -> None:
    x, index, weight, _ = routed(4, 3)
    with pytest.raises(ValueError, match="packed weights cannot be trained: load the model dequantised"):
        low_bit_experts(x.requires_grad_(), *stacks, index, weight).sum().backward()
    with pytest.raises(ValueError, match="packed weights cannot be trained"):
        low_bit_linear(x, drawn(stacks[0].scheme, 5, D)).sum().backward()
