"""Orthogonalisation by Newton-Schulz (Muon; as in Moonlight, arXiv 2502.16982 section 2).

    X = N / |N|_F;   five times:  A = X X^T,  X = a X + (b A + c A^2) X,   (a, b, c) = (3.4445, -4.7750, 2.0315)

It drives every singular value of X into about [0.68, 1.14] without a decomposition: the coefficients trade exactness
for steepness at zero, so small singular values rise quickly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moonlet.ops.dispatch import implementation, register

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


def newton_schulz(matrices: Tensor) -> Tensor:
    """Orthogonalise each matrix.

    Args:
        matrices: [..., rows, columns], any float dtype.

    Returns:
        The same shape and dtype; zero stays zero.
    """
    return implementation("newton_schulz", "batched")(matrices)  # type: ignore[no-any-return]


@register("newton_schulz", "reference")
def reference(matrices: Tensor) -> Tensor:
    """The law: one matrix after the other, in fp64."""
    a, b, c = COEFFICIENTS
    out = []
    for x in matrices.reshape(-1, *matrices.shape[-2:]).double():
        x = x / (x.norm() + 1e-7)
        for _ in range(STEPS):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        out.append(x)
    return torch.stack(out).view_as(matrices).to(matrices.dtype)


@register("newton_schulz", "batched")
def batched(matrices: Tensor) -> Tensor:
    """All matrices in one product, in bf16, which Muon was designed to bear; the smaller side makes the Gram matrix."""
    a, b, c = COEFFICIENTS
    rows, columns = matrices.shape[-2:]
    x = matrices.reshape(-1, rows, columns).float()
    if rows > columns:
        x = x.transpose(1, 2)
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    x = (x / (norm + 1e-7)).to(torch.bfloat16)
    for _ in range(STEPS):
        gram = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    if rows > columns:
        x = x.transpose(1, 2)
    return x.reshape(matrices.shape).to(matrices.dtype)
