"""The logarithm of each key channel's decay in Kimi delta attention.

    g = -exp(A_log) softplus(f + dt_bias)

All of it is fp32 whatever the dtype of f (fp64 where it is), as the decay over a text is a product of a thousand
factors. `native` keeps f alone for backward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moonlet.ops.dispatch import implementation, register
from moonlet.ops.native.call import DTYPES, as_rows, kernel, native_fits
from moonlet.ops.tiles import arithmetic

_BLOCK = 64  # tokens whose share of the gradients of A_log and dt_bias is summed together, as in kda.cpp


def log_decay(f: Tensor, a_log: Tensor, dt_bias: Tensor) -> Tensor:
    """Decays of H heads of K channels.

    Args:
        f: [B, T, H K], any float dtype.
        a_log: [1, 1, H, 1], fp32 (or fp64), logarithm of how fast a head forgets.
        dt_bias: [H K], fp32 (or fp64).

    Returns:
        [B, T, H, K], fp32 (or fp64), at most 0.
    """
    exact = a_log.dtype == dt_bias.dtype == torch.float32
    choice = "native" if exact and native_fits("kda", f, a_log, dt_bias) else "reference"
    return implementation("log_decay", choice)(f, a_log, dt_bias)  # type: ignore[no-any-return]


@register("log_decay", "reference")
def reference(f: Tensor, a_log: Tensor, dt_bias: Tensor) -> Tensor:
    """The law."""
    softplus = F.softplus(f.to(arithmetic(f.dtype)) + dt_bias)  # (B, T, HK)
    g: Tensor = softplus.unflatten(-1, (a_log.shape[2], -1)) * -a_log.exp()
    return g


@register("log_decay", "native")
def native(f: Tensor, a_log: Tensor, dt_bias: Tensor) -> Tensor:
    """One kernel each way."""
    g: Tensor = _LogDecay.apply(f, a_log, dt_bias)  # type: ignore[no-untyped-call]
    return g


class _LogDecay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, f, a_log, dt_bias):  # type: ignore[no-untyped-def]
        H = a_log.shape[2]
        K = f.shape[-1] // H
        rows, bias, rate = as_rows(f), dt_bias.contiguous(), a_log.flatten().exp()
        g = torch.empty(*f.shape[:-1], H, K)
        kernel("kda", f"decays_{DTYPES[f.dtype]}")(
            *map(Tensor.data_ptr, (rows, bias, rate, g)), len(rows), H, K, rows.stride(0)
        )
        ctx.save_for_backward(f, a_log, dt_bias)
        return g

    @staticmethod
    @once_differentiable
    def backward(ctx, d_g):  # type: ignore[no-untyped-def]
        f, a_log, dt_bias = ctx.saved_tensors
        H = a_log.shape[2]
        rows, given, bias, rate = as_rows(f), as_rows(d_g.flatten(-2)), dt_bias.contiguous(), a_log.flatten().exp()
        d_f, sums = torch.empty(f.shape, dtype=f.dtype), torch.empty(-(-len(rows) // _BLOCK), 2, f.shape[-1])
        kernel("kda", f"decays_backward_{DTYPES[f.dtype]}")(
            *map(Tensor.data_ptr, (given, rows, bias, rate, d_f, sums)),
            len(rows), H, f.shape[-1] // H, given.stride(0), rows.stride(0),
        )  # fmt: skip
        d_bias, by_rate = sums.sum(0)
        return d_f, (by_rate.view(H, -1).sum(1) * -rate).view(a_log.shape), d_bias
