"""Causal attention: softmax(q k^T scale) v, where query t of a row sees keys 0 .. start + t.

`start` is the number of keys that were there before the first query: 0 in training, the cache's length in decode;
one number for all rows or one a row. Values may be of another width than keys, as MLA's are. Heads of keys and values
may be fewer than those of queries: with G of them, query head h attends to key head h // (H / G).

B batch, H heads, G heads of keys and values, T queries, S keys, K key width, V value width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.ops import attention_blocks, attention_native, flash
from moonlet.ops.dispatch import implementation, register


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, start: int | Tensor = 0, documents: Tensor | None = None
) -> Tensor:
    """Attend causally.

    Args:
        q: [B, H, T, K], any float dtype.
        k: [B, G, S, K], same dtype; H is a multiple of G.
        v: [B, G, S, V], same dtype.
        scale: what the logits are multiplied by before the softmax.
        start: keys that precede the first query: an int, or int64 [B] where rows differ. Keys beyond start + t are
            not seen by query t, whatever they hold.
        documents: int64 [B, T], which document each token belongs to; tokens see their own document only, whose
            tokens stand together. Needs T = S and start = 0. None: one document a row.

    Returns:
        [B, H, T, V], q's dtype. The softmax is taken in fp32.
    """
    return implementation("attention", choose(q, k, v, start, documents))(q, k, v, scale, start, documents)  # type: ignore[no-any-return]


def choose(q: Tensor, k: Tensor, v: Tensor, start: int | Tensor, documents: Tensor | None = None) -> str:
    if k.shape[1] == 1 < q.shape[1] and q.shape[-1] != v.shape[-1]:
        return "grouped"  # MLA over its latents, wider than any fused kernel takes
    if q.is_cuda:
        return "flash" if flash.fits(q, k, v, start) else "sdpa"
    one_width = q.shape[-1] == v.shape[-1]
    if one_width and q.shape[2] == 1:
        return "grouped"
    if q.shape[2] > 1 and attention_native.fits(q, k, v, start, documents):
        return "native"
    # Without the kernel: SDPA leaves its fast path on a CPU when widths differ, and the padding it then needs costs
    # more than the [T, S] matrix does while that is small; it has no fast path for bf16. Found by timing both, forward
    # and backward, with the allocator kept warm.
    bf16 = q.dtype == torch.bfloat16
    if documents is not None and q.shape[2] > 1024:
        return "blocks"  # a mask for every row would be as large as what blocks are there to avoid
    if one_width and (not bf16 or _may_hide_keys(start, q, k)):
        return "sdpa"
    return "products" if q.shape[2] * k.shape[2] <= (1024 * 1024 if bf16 else 256 * 256) else "sdpa"


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
    n = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(n, 1), v.repeat_interleave(n, 1)  # (B, H, S, K), (B, H, S, V)
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
    if isinstance(start, int) and start == 0 and q.shape[2] == k.shape[2] and documents is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=k.shape[1] < q.shape[1])
    else:
        mask = causal_mask(start, q.shape[2], k.shape[2], q.device, documents)
        n = q.shape[1] // k.shape[1]
        if n > 1 and q.is_cuda:  # there, no kernel that knows masks knows groups
            k, v = k.repeat_interleave(n, 1), v.repeat_interleave(n, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=k.shape[1] < q.shape[1])
    return out[..., :V]  # (B, H, T, V)


def _may_hide_keys(start: int | Tensor, q: Tensor, k: Tensor) -> bool:
    """Whether some key is seen by no query of its row: only then can a value be garbage."""
    return not isinstance(start, int) or start + q.shape[2] < k.shape[2]


@register("attention", "grouped")
def grouped(
    q: Tensor, k: Tensor, v: Tensor, scale: float, start: int | Tensor, documents: Tensor | None = None
) -> Tensor:
    """Heads that share keys become rows of one matrix: each product is a single one a group, and no key is copied."""
    B, H, T, K = q.shape
    G, S, V = k.shape[1], k.shape[2], v.shape[3]
    rows = q.reshape(B * G, H // G * T, K)
    logits = torch.bmm(rows, k.reshape(B * G, S, K).transpose(1, 2)).float() * scale  # (BG, HT/G, S)
    if T > 1 or _may_hide_keys(start, q, k):
        mask = causal_mask(start, T, S, q.device, documents)
        logits = logits.view(B, H, T, S).masked_fill(~mask, float("-inf")).view_as(logits)
    if _may_hide_keys(start, q, k):
        v = torch.where(mask.any(-2)[..., None], v, 0.0)
    return torch.bmm(logits.softmax(-1).to(q.dtype), v.reshape(B * G, S, V)).view(B, H, T, V)


register("attention", "native")(attention_native.native)
register("attention", "blocks")(attention_blocks.blockwise)


@register("attention", "products")
def products(
    q: Tensor, k: Tensor, v: Tensor, scale: float, start: int | Tensor, documents: Tensor | None = None
) -> Tensor:
    """Batched products with an additive mask, for short sequences on a CPU; shared keys as in `grouped`."""
    if _may_hide_keys(start, q, k):
        return reference(q, k, v, scale, start, documents)
    B, H, T, K = q.shape
    G, S, V = v.shape[1:]
    mask = causal_mask(start, T, S, q.device, documents)  # (T, S) or (B, 1, T, S)
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, float("-inf"))
    shape = (H, T, S) if mask.dim() > 2 else (T, S)  # the logits' last axes, as the bias meets them
    rows, keys, values = q.reshape(B * G, -1, K), k.reshape(B * G, S, K), v.reshape(B * G, S, V)
    out: Tensor = _Products.apply(rows, keys, values, bias, scale, shape)  # type: ignore[no-untyped-call]
    return out.view(B, H, T, V)


class _Products(torch.autograd.Function):
    """softmax(q k^T scale + bias) v over [N, rows, K] batches, keeping only the probabilities for the backward."""

    @staticmethod
    def forward(ctx, q, k, v, bias, scale, shape):  # type: ignore[no-untyped-def]
        logits = torch.bmm(q, k.transpose(1, 2))  # (N, rows, S)
        # In place: the [T, S] matrices are what this costs.
        logits = logits.mul_(scale).view(-1, *shape).add_(bias).view_as(logits)
        p = torch.softmax(logits, -1)
        ctx.save_for_backward(q, k, v, p)
        ctx.scale = scale
        return torch.bmm(p, v)

    @staticmethod
    def backward(ctx, d_out):  # type: ignore[no-untyped-def]
        q, k, v, p = ctx.saved_tensors
        d_v = torch.bmm(p.transpose(1, 2), d_out)
        d_p = torch.bmm(d_out, v.transpose(1, 2))
        d_logits = torch._softmax_backward_data(d_p, p, -1, p.dtype)  # (N, rows, S)
        d_q = torch.bmm(d_logits, k).mul_(ctx.scale)
        d_k = torch.bmm(d_logits.transpose(1, 2), q).mul_(ctx.scale)
        return d_q, d_k, d_v, None, None, None
