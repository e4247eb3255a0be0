"""Attention a block of queries at a time, in PyTorch's products: never [T, S], on any device and in any dtype.

A block of queries meets the keys up to its end, which halves the products of a causal mask, and its whole rows are
there at once, so the softmax is the plain one. The backward computes each block's logits again from the logarithm of
its rows' sums,

    p = exp(s - lse)    d_s = p (d_p - sum_v d_o o)    d_v += p^T d_o    d_k += d_s^T q    d_q = d_s k

and adds up the gradients of keys and values in fp32. Letters as in ops/attention.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits held at once. A CPU's block should stay near its cache, a GPU's should be few.
HELD = {"cpu": 2**21, "cuda": 2**25}
_FEWEST, _MOST = 16, 256


def blockwise(
    q: Tensor, k: Tensor, v: Tensor, scale: float, start: int | Tensor, documents: Tensor | None = None
) -> Tensor:
    """Arguments as in `ops.attention`. -> [B, H, T, V]"""
    if not isinstance(start, int) or start + q.shape[2] < k.shape[2]:
        # Keys that nobody sees may hold anything; NaN survives a probability of zero.
        first = torch.as_tensor(start, device=q.device).reshape(-1, 1) + q.shape[2]
        seen = (torch.arange(k.shape[2], device=q.device) < first)[:, None, :, None]  # (B or 1, 1, S, 1)
        k, v = torch.where(seen, k, 0.0), torch.where(seen, v, 0.0)
    out: Tensor = _Blocks.apply(q, k, v, scale, start, documents)  # type: ignore[no-untyped-call]
    return out


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, scale, start, documents):  # type: ignore[no-untyped-def]
        (B, H, T, _), (G, S, V) = q.shape, v.shape[1:]
        out = q.new_empty(B, H, T, V)
        lse = torch.empty(B, H, T, dtype=_wide(q), device=q.device)
        for t, n, end in _pieces(q, S, start):
            s = _logits(q, k, t, n, end, scale, start, documents)  # (B, H, n, end)
            top = s.amax(-1, keepdim=True)  # (B, H, n, 1)
            p = s.sub_(top).exp_()
            total = p.sum(-1, keepdim=True)
            p = p.div_(total).to(q.dtype).view(B, G, -1, end)
            out[:, :, t : t + n] = (p @ v[:, :, :end]).view(B, H, n, V)
            lse[:, :, t : t + n] = (top + total.log())[..., 0]
        ctx.save_for_backward(q, k, v, out, lse, documents, start if isinstance(start, Tensor) else None)
        ctx.scale, ctx.start = scale, start if isinstance(start, int) else None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):  # type: ignore[no-untyped-def]
        q, k, v, out, lse, documents, starts = ctx.saved_tensors
        start = starts if ctx.start is None else ctx.start
        (B, H, _, K), (G, S, V) = q.shape, v.shape[1:]
        d_q = torch.empty_like(q)
        d_k, d_v = (torch.zeros(x.shape, dtype=lse.dtype, device=q.device) for x in (k, v))
        for t, n, end in _pieces(q, S, start):
            block = slice(t, t + n)
            s = _logits(q, k, t, n, end, ctx.scale, start, documents)
            p = s.sub_(lse[:, :, block, None]).exp_()  # (B, H, n, end)
            d_o = d_out[:, :, block]
            inner = (d_o.to(lse.dtype) * out[:, :, block]).sum(-1)  # (B, H, n)
            d_o, rows = d_o.reshape(B, G, -1, V), q[:, :, block].reshape(B, G, -1, K)
            d_v[:, :, :end] += p.to(q.dtype).view(B, G, -1, end).transpose(2, 3) @ d_o
            d_p = (d_o @ v[:, :, :end].transpose(2, 3)).view(B, H, n, end).to(lse.dtype)
            d_s = d_p.sub_(inner[..., None]).mul_(p).mul_(ctx.scale).to(q.dtype).view(B, G, -1, end)
            d_q[:, :, block] = (d_s @ k[:, :, :end]).view(B, H, n, K)
            d_k[:, :, :end] += d_s.transpose(2, 3) @ rows
        return d_q, d_k.to(k.dtype), d_v.to(v.dtype), None, None, None


def _wide(q: Tensor) -> torch.dtype:
    """What the softmax is taken in."""
    return torch.promote_types(q.dtype, torch.float32)


def _pieces(q: Tensor, keys: int, start: int | Tensor) -> list[tuple[int, int, int]]:
    """First query, number of queries, and end of the keys of each block."""
    B, H, T, _ = q.shape
    held = HELD["cpu" if q.device.type == "cpu" else "cuda"]
    rows = min(_MOST, max(_FEWEST, held // max(1, B * H * keys)))
    # Where rows differ in their start, how far the furthest sees is known to the device alone.
    return [
        (t, min(rows, T - t), min(keys, start + t + rows) if isinstance(start, int) else keys)
        for t in range(0, T, rows)
    ]


def _logits(
    q: Tensor, k: Tensor, t: int, n: int, end: int, scale: float, start: int | Tensor, documents: Tensor | None
) -> Tensor:
    """Scaled and masked, [B, H, n, end], of queries t .. t + n - 1."""
    (B, H, _, K), G = q.shape, k.shape[1]
    rows = q[:, :, t : t + n].reshape(B, G, -1, K)  # heads that share keys are rows of one matrix
    s = (rows @ k[:, :, :end].transpose(2, 3)).view(B, H, n, end).to(_wide(q)).mul_(scale)
    last = torch.arange(t, t + n, device=q.device)[:, None] + (
        start if isinstance(start, int) else start[:, None, None]
    )
    hidden = torch.arange(end, device=q.device) > last  # (n, end) or (B, n, end)
    if documents is not None:
        hidden = hidden | (documents[:, t : t + n, None] != documents[:, None, :end])
    return s.masked_fill_(hidden[:, None] if hidden.dim() > 2 else hidden, float("-inf"))
