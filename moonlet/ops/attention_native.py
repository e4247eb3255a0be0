"""Attention by a C++ kernel for CPUs: tiles that stay in the cache, forward and backward, and nothing that is hidden.

No logit reaches memory, blocks of keys that the causal mask or a document's start hides are passed over, and inputs are
read where they lie, whatever their strides. The backward computes logits once more from a saved logarithm of each row's
sum (FlashAttention, arXiv 2205.14135 and 2307.08691). Each sum has one order: the bits do not depend on the number of
threads. Forwards are shared among threads by rows, heads and queries, backwards by rows and key heads.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moonlet.ops.native.build import library
from moonlet.ops.native.call import DTYPES, kernel, native_fits
from moonlet.ops.rope import Rotation

# With AMX, PyTorch's batched products are two to three times as fast as the vector unit's, and [T, S] matrices in
# memory cost less than wide heads do: K + V beyond which they are left to it while T is short.
_AMX_WIDTHS = 160


def fits(q: Tensor, k: Tensor, v: Tensor, start: int | Tensor, documents: Tensor | None) -> bool:
    """Whether the kernel can take these [B, H, T, K] tensors, and is the faster."""
    others = [x for x in (start, documents) if isinstance(x, Tensor)]
    if not native_fits("attention", q, k, v) or not all(x.device.type == "cpu" for x in others):
        return False
    if not q.dtype == k.dtype == v.dtype or not q.numel() or not v.numel():
        return False
    wide = q.shape[-1] + v.shape[-1] > _AMX_WIDTHS
    return not (wide and q.dtype == torch.bfloat16 and q.shape[2] * k.shape[2] <= 1024 * 1024 and has_amx())


def has_amx() -> bool:
    loaded = library("attention")
    return loaded is not None and bool(loaded.attention_amx())


def native(
    q: Tensor, k: Tensor, v: Tensor, scale: float, start: int | Tensor, documents: Tensor | None = None
) -> Tensor:
    """Arguments as in `ops.attention`. -> [B, H, T, V], a view of [B, T, H, V]"""
    out: Tensor = _Attention.apply(q, k, v, scale, start, documents)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, scale, start, documents):  # type: ignore[no-untyped-def]
        q, k, v = (dense_rows(x) for x in (q, k, v))
        B, H, T, _ = q.shape
        out = torch.empty(B, T, H, v.shape[3], dtype=q.dtype).transpose(1, 2)
        lse = torch.empty(B, H, T)
        Call(q, k, v, out, scale, start, documents).run("attention", lse=lse)
        ctx.save_for_backward(q, k, v, out, lse, documents)
        ctx.scale, ctx.start = scale, start
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):  # type: ignore[no-untyped-def]
        q, k, v, out, lse, documents = ctx.saved_tensors
        d_q, d_k, d_v = (
            torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
            for x in (q, k, v)
        )
        call = Call(q, k, v, out, ctx.scale, ctx.start, documents)
        call.run("attention_backward", (dense_rows(d_out), d_q, d_k, None, d_v), lse=lse)
        return d_q, d_k, d_v, None, None, None


def dense_rows(x: Tensor) -> Tensor:
    """x, copied where its last axis is not dense."""
    return x if x.stride(-1) == 1 else x.contiguous()


class Call:
    """The kernel's one argument: sizes, pointers and strides in the order of `struct Call`."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        scale: float,
        start: int | Tensor,
        documents: Tensor | None,
        shared: Tensor | None = None,
        rotation: Rotation | None = None,
    ) -> None:
        """As in `native`; shared: [B, T, P], the end of every head's key; rotation: what turns it and the queries'."""
        (B, H, T, W), (G, S, K), V = q.shape, k.shape[1:], v.shape[3]
        assert K + (0 if shared is None else shared.shape[-1]) == W
        self.suffix, self.scale = DTYPES[q.dtype], scale
        self.sizes = (B, H, G, T, S, K, W - K, V)
        self.inputs = (*_strided(q), *_strided(k), *_strided(shared), *_strided(v), *_strided(out))
        # Kept until the kernel has run: pointers hold nothing.
        starts = start.contiguous() if isinstance(start, Tensor) else None
        angles = None if rotation is None else tuple(x.contiguous() for x in rotation)
        self.kept = (starts, angles, None if documents is None else documents.contiguous())
        half = (W - K) // 2
        self.rotation: tuple[int, ...] = (0, 0, 0, 0)
        if angles is not None:
            self.rotation = (*map(Tensor.data_ptr, angles), T * half if angles[0].dim() == 3 else 0, half)
        self.seen = (_pointer(starts), _pointer(self.kept[2]), 0 if isinstance(start, Tensor) else start)

    def run(
        self,
        function: str,
        gradients: tuple[Tensor | None, ...] = (None,) * 5,
        lse: Tensor | None = None,
        largest: Tensor | None = None,
        turned: Tensor | None = None,
    ) -> None:
        """gradients: of out, q, k, shared, v."""
        given = [number for x in gradients for number in _strided(x)]
        results = (_pointer(lse), _pointer(largest), _pointer(turned))
        whole = (*self.sizes, *self.inputs, *given, *self.rotation, *self.seen, *results)
        argument = struct.pack(f"={len(whole)}qd", *whole, self.scale)
        kernel("attention", f"{function}_{self.suffix}")(argument, torch.get_num_threads())


def _strided(x: Tensor | None) -> tuple[int, int, int, int]:
    """Pointer, and strides of rows, heads and tokens: x is [B, H, T, width], or [B, T, width] for all heads."""
    if x is None:
        return 0, 0, 0, 0
    return x.data_ptr(), x.stride(0), x.stride(1) if x.dim() == 4 else 0, x.stride(-2)


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
