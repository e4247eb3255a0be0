"""Causal attention: softmax(q k^T scale) v, where query t of a row sees keys 0 .. start + t.

`start` is the number of keys that were there before the first query: 0 in training, the cache's length in decode;
one number for all rows or one a row. Values may be of another width than keys, as MLA's are.

B batch, H heads, T queries, S keys, K key width, V value width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.ops.dispatch import implementation, register


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, start: int | Tensor = 0, documents: Tensor | None = None
) -> Tensor:
    """Attend causally.

    Args:
        q: [B, H, T, K], any float dtype.
        k: [B, H, S, K], same dtype. One head (size 1) is shared by all of q's.
        v: [B, H, S, V], same dtype.
        scale: what the logits are multiplied by before the softmax.
        start: keys that precede the first query: an int, or int64 [B] where rows differ. Keys beyond start + t are
            not seen by query t, whatever they hold.
        documents: int64 [B, T], which document each token belongs to; tokens see their own document only. Needs
            T = S and start = 0. None: one document a row.

    Returns:
        [B, H, T, V], q's dtype. The softmax is taken in fp32.
    """
    return implementation("attention", _choose(q, k, start))(q, k, v, scale, start, documents)  # type: ignore[no-any-return]


def _choose(q: Tensor, k: Tensor, start: int | Tensor) -> str:
    if k.shape[1] == 1 < q.shape[1]:
        return "shared"
    if q.is_cuda:
        return "sdpa"
    # On a CPU, SDPA leaves its fast path when widths differ, and the padding it then needs costs more than the [T, S]
    # matrix does while that is small. Found by timing both, forward and backward, with the allocator kept warm.
    small = 1024 * 1024 if q.dtype == torch.bfloat16 else 256 * 256
    return "products" if q.shape[2] * k.shape[2] <= small else "sdpa"


def causal_mask(
    start: int | Tensor, queries: int, keys: int, device: torch.device, documents: Tensor | None = None
) -> Tensor:
    """Boolean mask, True where query t may see key s: s <= start + t, and in the same document.

    [T, S], or [B, 1, T, S] where rows differ.
    """
    if documents is not None:
        same = documents[:, None, :, None] == documents[:, None, None, :]  # (B, 1, T, T)
        return same & causal_mask(start, queries, keys, device)
    s = torch.arange(keys, device=device)
    t = torch.arange(queries, device=device)
    if isinstance(start, int):
        return s[None, :] <= start + t[:, None]  # (T, S)
    return s[None, None, None, :] <= (start[:, None] + t[None, :])[:, None, :, None]  # (B, 1, T, S)


@register("attention", "reference")
def reference(
    q: Tensor, k: Tensor, v: Tensor, scale: float, start: int | Tensor, documents: Tensor | None = None
) -> Tensor:
    """The law: every logit, masked, softmax in fp32."""
    logits = (q @ k.transpose(-1, -2)).float() * scale  # (B, H, T, S)
    mask = causal_mask(start, q.shape[2], k.shape[2], q.device, documents)
    # where(), not multiplication: keys nobody may see can hold anything, NaN included.
    p = logits.masked_fill(~mask, float("-inf")).softmax(-1)
    v = torch.where(mask.any(-2)[..., None], v, 0.0) if _may_hide_keys(start, q, k) else v
    return p.to(q.dtype) @ v  # (B, H, T, V)


@register("attention", "sdpa")
def sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, start: int | Tensor, documents: Tensor | None = None) -> Tensor:
    """PyTorch's fused kernels. The value is padded to the key's width, without which the fused path is not taken."""
    K, V = q.shape[-1], v.shape[-1]
    if _may_hide_keys(start, q, k):
        # The kernels add minus infinity to hidden logits and multiply hidden values by zero; NaN survives both.
        seen = causal_mask(start, q.shape[2], k.shape[2], q.device).any(-2)[..., None]
        k, v = torch.where(seen, k, 0.0), torch.where(seen, v, 0.0)
    if V < K:
        v = F.pad(v, (0, K - V))
    elif K < V:
        q, k = F.pad(q, (0, V - K)), F.pad(k, (0, V - K))
    k, v = k.expand(-1, q.shape[1], -1, -1), v.expand(-1, q.shape[1], -1, -1)
    if isinstance(start, int) and start == 0 and q.shape[2] == k.shape[2] and documents is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    else:
        mask = causal_mask(start, q.shape[2], k.shape[2], q.device, documents)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out[..., :V]  # (B, H, T, V)


def _may_hide_keys(start: int | Tensor, q: Tensor, k: Tensor) -> bool:
    """Whether some key is seen by no query of its row: only then can a value be garbage."""
    return not isinstance(start, int) or start + q.shape[2] < k.shape[2]


@register("attention", "shared")
def shared(
    q: Tensor, k: Tensor, v: Tensor, scale: float, start: int | Tensor, documents: Tensor | None = None
) -> Tensor:
    """One key head for all query heads: heads become rows, and each product is a single one a batch row."""
    B, H, T, K = q.shape
    S = k.shape[2]
    rows = q.reshape(B, H * T, K)
    logits = torch.bmm(rows, k[:, 0].transpose(1, 2)).float() * scale  # (B, HT, S)
    if T > 1 or _may_hide_keys(start, q, k):
        mask = causal_mask(start, T, S, q.device, documents)
        logits = logits.view(B, H, T, S).masked_fill(~mask, float("-inf")).view(B, H * T, S)
    if _may_hide_keys(start, q, k):
        v = torch.where(mask.any(-2)[..., None], v, 0.0)
    return torch.bmm(logits.softmax(-1).to(q.dtype), v[:, 0]).view(B, H, T, -1)


@register("attention", "products")
def products(
    q: Tensor, k: Tensor, v: Tensor, scale: float, start: int | Tensor, documents: Tensor | None = None
) -> Tensor:
    """Batched products with an additive mask, for short sequences on a CPU."""
    if _may_hide_keys(start, q, k) or k.shape[1] != q.shape[1]:
        return reference(q, k, v, scale, start, documents)
    B, H, T, K = q.shape
    S, V = v.shape[2:]
    mask = causal_mask(start, T, S, q.device, documents)  # (T, S) or (B, 1, T, S)
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, float("-inf"))
    out: Tensor = _Products.apply(q.reshape(B * H, T, K), k.reshape(B * H, S, K), v.reshape(B * H, S, V), bias, scale)  # type: ignore[no-untyped-call]
    return out.view(B, H, T, V)


class _Products(torch.autograd.Function):
    """softmax(q k^T scale + bias) v over [N, T, K] batches, keeping only the probabilities for the backward."""

    @staticmethod
    def forward(ctx, q, k, v, bias, scale):  # type: ignore[no-untyped-def]
        logits = torch.bmm(q, k.transpose(1, 2))  # (N, T, S)
        # In place: the [T, S] matrices are what this costs.
        logits = logits.mul_(scale).view(-1, *_heads(bias, logits)).add_(bias).view_as(logits)
        p = torch.softmax(logits, -1)
        ctx.save_for_backward(q, k, v, p)
        ctx.scale = scale
        return torch.bmm(p, v)

    @staticmethod
    def backward(ctx, d_out):  # type: ignore[no-untyped-def]
        q, k, v, p = ctx.saved_tensors
        d_v = torch.bmm(p.transpose(1, 2), d_out)
        d_p = torch.bmm(d_out, v.transpose(1, 2))
        d_logits = torch._softmax_backward_data(d_p, p, -1, p.dtype)  # (N, T, S)
        d_q = torch.bmm(d_logits, k).mul_(ctx.scale)
        d_k = torch.bmm(d_logits.transpose(1, 2), q).mul_(ctx.scale)
        return d_q, d_k, d_v, None, None


def _heads(bias: Tensor, logits: Tensor) -> tuple[int, ...]:
    """The shape of `logits` [BH, T, S] behind its batch axis, with the heads apart where the bias has a batch axis."""
    T, S = logits.shape[1:]
    return (T, S) if bias.dim() == 2 else (logits.shape[0] // bias.shape[0], T, S)
