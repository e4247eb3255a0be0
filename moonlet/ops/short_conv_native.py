"""The short convolution by a C++ kernel for CPUs: all of `ops.short_conv` in one pass over memory each way.

Backward computes the convolution once more from its inputs. Gradients of the filters are summed over blocks of tokens,
so the bits do not depend on the number of threads.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moonlet.ops.attention_native import dense_rows
from moonlet.ops.dispatch import register
from moonlet.ops.native.call import DTYPES, kernel, native_fits

_BLOCK = 64  # tokens whose share of the filters' gradient is summed together, as in kda.cpp
_MOST = 16  # taps


def fits(x: Tensor, weight: Tensor, before: Tensor | None, documents: Tensor | None) -> bool:
    """Whether the kernel can take these."""
    if weight.shape[2] > _MOST or not x.numel() or (documents is not None and documents.device.type != "cpu"):
        return False
    return native_fits("kda", x, weight, *([] if before is None else [before]))


@register("short_conv", "native")
def native(x: Tensor, weight: Tensor, head_dim: int | None, before: Tensor | None, documents: Tensor | None) -> Tensor:
    """Arguments as in `ops.short_conv`."""
    out: Tensor = _Convolved.apply(x, weight, before, documents, head_dim)  # type: ignore[no-untyped-call]
    return out


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, before, documents, head_dim):  # type: ignore[no-untyped-def]
        out = torch.empty(x.shape, dtype=x.dtype)
        _run("conv", x, weight, before, documents, head_dim, out)
        ctx.save_for_backward(x, weight, before, documents)
        ctx.head_dim = head_dim
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):  # type: ignore[no-untyped-def]
        x, weight, before, documents = ctx.saved_tensors
        (B, T, C), W = x.shape, weight.shape[2]
        d_x, d_taps = torch.empty(x.shape, dtype=x.dtype), torch.empty(B * -(-T // _BLOCK), W, C)
        d_before = None if before is None else torch.empty(B, W - 1, C)
        _run("conv_backward", x, weight, before, documents, ctx.head_dim, dense_rows(d_out), d_x, d_taps, d_before)
        d_weight = d_taps.sum(0).t()[:, None].to(weight.dtype)
        return d_x, d_weight, None if d_before is None else d_before.to(before.dtype), None, None


def _run(
    function: str,
    x: Tensor,
    weight: Tensor,
    before: Tensor | None,
    documents: Tensor | None,
    head_dim: int | None,
    out: Tensor,
    d_x: Tensor | None = None,
    d_taps: Tensor | None = None,
    d_before: Tensor | None = None,
) -> None:
    """Arguments in the order of `struct Conv`; out: the output, or its gradient."""
    x, taps = dense_rows(x), weight[:, 0].t().float().contiguous()
    known = None if before is None else before.to(x.dtype).contiguous()
    seen = None if documents is None else documents.contiguous()
    pointers = [0 if a is None else a.data_ptr() for a in (x, out, known, taps, seen, d_x, d_taps, d_before)]
    strides = (*x.stride()[:2], *out.stride()[:2])
    whole = (*x.shape, weight.shape[2], head_dim or 0, *pointers[:3], *strides, *pointers[3:])
    kernel("kda", f"{function}_{DTYPES[x.dtype]}")(struct.pack(f"={len(whole)}q", *whole), torch.get_num_threads())
