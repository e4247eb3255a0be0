"""Orthogonalisation by Newton-Schulz (Muon; as in Moonlight, arXiv 2502.16982 section 2).

    X = N / |N|_F;   five times:  A = X X^T,  X = a X + (b A + c A^2) X,   (a, b, c) = (3.4445, -4.7750, 2.0315)

It drives every singular value of X that exceeds about 0.02 into [0.68, 1.14] without a decomposition: the coefficients
trade exactness for steepness at zero, so small singular values rise quickly, by a^5 = 485 at most.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from moonlet.ops.dispatch import implementation, register
from moonlet.ops.native.build import library
from moonlet.ops.native.call import kernel, native_fits

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
# Added to the norm, as published: zero stays zero.
_EPS = 1e-7

# Elements worked on at once. On a CPU iterate and Gram matrices then stay in its caches: 6% quicker than 140 matrices
# of 256 x 256 at once. A GPU wants large products; what they need beside them stays below 2 GiB.
_CPU_ELEMENTS = 2**19  # a thread
_GPU_ELEMENTS = 2**27

# The native form fills sides up to multiples of 32: below this too much of the work is for nothing.
_NATIVE_SIDE = 96


def newton_schulz(matrices: Tensor, steps: int = STEPS, dtype: torch.dtype | None = None) -> Tensor:
    """Orthogonalise each matrix.

    Args:
        matrices: [..., rows, columns], any float dtype and any magnitude; any leading dimensions, or none.
        steps: iterations.
        dtype: of the products. bf16, which Muon was designed to bear, where the machine is quicker at it; None: the
            matrices' own.

    Returns:
        The same shape and dtype; zero stays zero.
    """
    assert matrices.dim() >= 2, "a matrix has two dimensions"
    return implementation("newton_schulz", choose(matrices, dtype))(matrices, steps, dtype)  # type: ignore[no-any-return]


def choose(matrices: Tensor, dtype: torch.dtype | None = None) -> str:
    """Every thread of the native form works on matrices of its own, and fills small ones up."""
    rows, columns = matrices.shape[-2:]
    suits = matrices.dtype == torch.float32 and dtype == torch.bfloat16 and matrices.device.type == "cpu"
    many = min(rows, columns) >= _NATIVE_SIDE and matrices.numel() >= rows * columns * torch.get_num_threads()
    return "native" if suits and many and native_fits("newton_schulz", matrices) and _is_quicker() else "batched"


def chunk(rows: int, columns: int, device: torch.device) -> int:
    """How many matrices of one shape are best given to one call; more are worked on in turns."""
    elements = _CPU_ELEMENTS * torch.get_num_threads() if device.type == "cpu" else _GPU_ELEMENTS
    return max(1, elements // max(1, rows * columns))


@register("newton_schulz", "reference")
def reference(matrices: Tensor, steps: int = STEPS, dtype: torch.dtype | None = None) -> Tensor:
    """The law: one matrix after the other, in fp64 whatever `dtype` says."""
    a, b, c = COEFFICIENTS
    out = torch.empty(matrices.shape, dtype=torch.float64, device=matrices.device)
    shape = (matrices.shape[:-2].numel(), *matrices.shape[-2:])
    for x, result in zip(matrices.double().reshape(shape), out.view(shape), strict=True):
        x = x / (x.norm() + _EPS)
        for _ in range(steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        result.copy_(x)
    return out.to(matrices.dtype)


@register("newton_schulz", "batched")
def batched(matrices: Tensor, steps: int = STEPS, dtype: torch.dtype | None = None) -> Tensor:
    """A product a step for all matrices of a chunk; the smaller side makes the Gram matrix.

    On a CPU in bf16 the products of 256 x 256 run at the peak of its matrix units (65 us each on a core of 0.5
    TFLOP/s), so that only fewer operations could be quicker. Forming just one half of the symmetric A and A^2, in
    blocks, is not, from 256 to 2,048 rows: copying and joining the blocks cost what is saved.
    """
    if matrices.numel() == 0:
        return matrices.clone()
    dtype = dtype or matrices.dtype
    rows, columns = matrices.shape[-2:]
    stack = matrices.reshape(-1, rows, columns)
    size = chunk(rows, columns, matrices.device)
    if len(stack) <= size:
        return _orthogonal(stack, steps, dtype).view(matrices.shape)
    out = torch.empty(stack.shape, dtype=stack.dtype, device=stack.device)
    for part, result in zip(stack.split(size), out.split(size), strict=True):
        result.copy_(_orthogonal(part, steps, dtype))
    return out.view(matrices.shape)


def _orthogonal(stack: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """[n, rows, columns] -> the same, contiguous."""
    a, b, c = COEFFICIENTS
    tall = stack.shape[1] > stack.shape[2]
    # The squares of what fp32 holds are sums that fp64 holds. Apple's GPUs have no fp64.
    wide = torch.float32 if stack.device.type == "mps" else torch.float64
    norm = torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True, dtype=wide) + _EPS
    x = stack / norm.to(torch.promote_types(stack.dtype, torch.float32))
    x = (x.mT if tall else x).to(dtype, memory_format=torch.contiguous_format)  # (n, small, large)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)  # (n, small, small)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    result: Tensor = x.mT if tall else x
    return result.to(stack.dtype, memory_format=torch.contiguous_format)


@register("newton_schulz", "native")
def native(matrices: Tensor, steps: int = STEPS, dtype: torch.dtype | None = None) -> Tensor:
    """A matrix at a time in a core's own cache, of symmetric products one half; fp32 in and out, bf16 between."""
    assert matrices.dtype == torch.float32, "masters are fp32"
    stack = matrices.contiguous()
    out = torch.empty_like(stack)
    rows, columns = stack.shape[-2:]
    if stack.numel() == 0:
        return out
    count = stack.numel() // (rows * columns)
    run = kernel("newton_schulz", "newton_schulz")
    run(stack, out, count, rows, columns, steps, (ctypes.c_float * 3)(*COEFFICIENTS), _EPS)
    return out


def _is_quicker() -> bool:
    """Whether the kernel suits this processor; there are some whose matrix library is quicker."""
    found = library("newton_schulz")
    return found is not None and bool(found.newton_schulz_here())
