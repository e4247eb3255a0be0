"""RMSNorm: x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467).

The order of casts is the reference implementation's: up to fp32, normalise, back to x's dtype, and only then times
the weight. It matters for equal bits in bf16. `native` is one pass over memory each way and keeps, beside x, one number
a row: the inverse of its size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moonlet.ops.dispatch import implementation, register
from moonlet.ops.native.call import DTYPES, as_rows, kernel, native_fits

_BLOCK = 256  # rows whose share of the weight's gradient is summed together, as in norm.cpp


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last axis.

    Args:
        x: [..., width], any float dtype; rows may lie apart.
        weight: [width], any float dtype; cast to x's.
        eps: added to the mean square.

    Returns:
        The same shape and dtype.
    """
    choice = "native" if native_fits("norm", x, weight) else "reference"
    return implementation("rms_norm", choice)(x, weight.to(x.dtype), eps)  # type: ignore[no-any-return]


@register("rms_norm", "reference")
def reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The law."""
    if x.dtype.itemsize >= 4:
        return F.rms_norm(x, weight.shape, weight, eps)  # no casts, so no order to keep
    return F.rms_norm(x.float(), weight.shape, None, eps).to(x.dtype) * weight


@register("rms_norm", "native")
def native(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """One kernel each way."""
    out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[no-untyped-def]
        rows, weight = as_rows(x), weight.contiguous()
        out, inverse = torch.empty(x.shape, dtype=x.dtype), torch.empty(len(rows))
        kernel("norm", f"norm_{DTYPES[x.dtype]}")(
            *map(Tensor.data_ptr, (rows, weight, out, inverse)), *rows.shape, rows.stride(0), float(eps)
        )
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):  # type: ignore[no-untyped-def]
        x, weight, inverse = ctx.saved_tensors
        rows, d_rows = as_rows(x), as_rows(d_out)
        d_x, sums = torch.empty(x.shape, dtype=x.dtype), torch.empty(-(-len(rows) // _BLOCK), len(weight))
        kernel("norm", f"norm_backward_{DTYPES[x.dtype]}")(
            *map(Tensor.data_ptr, (d_rows, rows, weight, inverse, d_x, sums)),
            *rows.shape, d_rows.stride(0), rows.stride(0),
        )  # fmt: skip
        return d_x, sums.sum(0).to(weight.dtype), None
