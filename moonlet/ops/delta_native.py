"""The gated delta rule by a C++ kernel for CPUs: chunks of sixteen tokens, a head of a row at a time, in the cache.

The equations are those of `delta_chunked`; native/delta.cpp says how decays are kept at most 1. Saved for backward are
the inputs and the state before every SPAN tokens. A task is one head of one row, so the bits do not depend on the
number of threads.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moonlet.ops.attention_native import dense_rows
from moonlet.ops.delta_chunked import chunked
from moonlet.ops.dispatch import register
from moonlet.ops.native.call import DTYPES, kernel, native_fits

SPAN = 128  # tokens before which a state is kept, as in delta.cpp


def fits(q: Tensor, v: Tensor, g: Tensor, documents: Tensor | None) -> bool:
    """Whether the kernel can take these; keys are as queries, and beta and states as g."""
    if not native_fits("delta", q, v, g) or not (documents is None or documents.device.type == "cpu"):
        return False
    return q.dtype == v.dtype and g.dtype == torch.float32 and q.numel() > 0 and v.numel() > 0


@register("delta_rule", "native")
def native(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float,
    state: Tensor | None = None,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `ops.delta.delta_rule` says; what the kernel cannot take is done in PyTorch."""
    if not (fits(q, v, g, documents) and k.dtype == q.dtype and beta.dtype == g.dtype):
        return chunked(q, k, v, g, beta, scale, state, documents)
    B, _, H, K = q.shape
    state = g.new_zeros(B, H, K, v.shape[-1]) if state is None else state.to(g.dtype)
    out: tuple[Tensor, Tensor] = _Delta.apply(q, k, v, g, beta, state, documents, scale)  # type: ignore[no-untyped-call]
    return out


class _Delta(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, g, beta, state, documents, scale):  # type: ignore[no-untyped-def]
        q, k, v, g = (dense_rows(x) for x in (q, k, v, g))
        (B, T, H, K), V = q.shape, v.shape[-1]
        o, last = torch.empty(v.shape, dtype=q.dtype), torch.empty(B, H, K, V)
        learns = any(ctx.needs_input_grad)
        before = torch.empty(B, H, -(-T // SPAN), K, V) if learns else None
        _run("delta", (q, k, v, g, beta), o, (), documents, (state, last, before, None), scale)
        if learns:
            ctx.save_for_backward(q, k, v, g, beta, before, documents)
            ctx.scale = scale
        return o, last

    @staticmethod
    @once_differentiable
    def backward(ctx, d_o, d_last):  # type: ignore[no-untyped-def]
        q, k, v, g, beta, before, documents = ctx.saved_tensors
        grads = tuple(torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v, g, beta))
        d_state = torch.empty(d_last.shape)
        states = (None, d_last, before, d_state)
        _run("delta_backward", (q, k, v, g, beta), dense_rows(d_o), grads, documents, states, ctx.scale)
        return *grads, d_state, None, None


def _run(
    function: str,
    inputs: tuple[Tensor, ...],
    o: Tensor,
    grads: tuple[Tensor, ...],
    documents: Tensor | None,
    states: tuple[Tensor | None, ...],
    scale: float,
) -> None:
    """Arguments in the order of `struct Call`; o: the output, or its gradient; states: state, last, before, d_state."""
    q, v = inputs[0], inputs[2]
    kept = [None if x is None else x.contiguous() for x in (documents, *states)]  # pointers hold nothing
    arrays = [*inputs, o, *(grads or (None,) * 5)]
    strided = [n for x in arrays for n in ((0,) * 4 if x is None else (x.data_ptr(), *x.stride()[:3]))]
    whole = (*q.shape, v.shape[-1], *strided, *(0 if x is None else x.data_ptr() for x in kept))
    argument = struct.pack(f"={len(whole)}qd", *whole, scale)
    kernel("delta", f"{function}_{DTYPES[q.dtype]}")(argument, torch.get_num_threads())
