"""The largest attention logit of each head, for QK-Clip (Kimi K2, arXiv 2507.20534).

    max over rows b and visible pairs (t, s) of  scale q_t . k_s     <=     max_b  |scale| max_t |q_t| max_s |k_s|

The right side costs one pass over q and k. The left side takes the product of all queries with all keys, once more
than attention did, so it is asked for only where the bound does not settle the question. Letters as in ops/attention.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moonlet.ops.attention import causal_mask
from moonlet.ops.dispatch import implementation, register

# Logits held at once, and keys a block has at most. A CPU's block should stay in its cache (found by timing 16 x 256
# and 4 x 1024 tokens of 8 heads); a GPU's should be few.
HELD = {"cpu": 2**21, "cuda": 2**25}
KEYS = {"cpu": 256, "cuda": 1024}
_FEWEST_QUERIES = 16


def logit_bound(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """What no logit of a head exceeds, by Cauchy and Schwarz.

    Args:
        q: [B, H, T, K], any float dtype.
        k: [B, G, S, K], same dtype; H is a multiple of G. Every key counts, seen or not.
        scale: what the logits are multiplied by.

    Returns:
        fp32 [H], never below `max_logit`, whatever rounding did there or here; infinite where squares overflow.
    """
    K = q.shape[-1]
    # Rounding of sums of K terms in fp32, in any order, once in the product and a half in each norm.
    padding = 1 + (K + 8) * torch.finfo(torch.float32).eps
    # Squares of numbers below 2^-63 vanish in fp32; added back so that a huge other factor cannot bring them out.
    lost = math.sqrt(K) * 2.0**-62
    longest_q, longest_k = (x.detach().float().square().sum(-1).amax(-1).sqrt() + lost for x in (q, k))
    longest_k = longest_k.repeat_interleave(q.shape[1] // k.shape[1], 1)  # (B, H)
    return (longest_q * longest_k).amax(0) * (abs(scale) * padding)  # (H,)


def max_logit(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    start: int | Tensor = 0,
    documents: Tensor | None = None,
    heads: Tensor | None = None,
) -> Tensor:
    """The largest signed logit that some query sees, over all rows. No gradient.

    Args:
        q: [B, H, T, K], any float dtype.
        k: [B, G, S, K], same dtype; H is a multiple of G.
        scale: what the logits are multiplied by, positive.
        start: as in `attention`; keys beyond start + t are not seen by query t, whatever they hold.
        documents: as in `attention`.
        heads: int64 [n] on q's device, the query heads to look at; None: all.

    Returns:
        fp32 [H]; minus infinity for heads not asked for. Products and sums are fp32, whatever the dtype of q and k.
    """
    H = q.shape[1]
    look = implementation("max_logit", "blockwise")
    with torch.no_grad():
        if heads is None or len(heads) == H:
            return look(q, k, scale, start, documents)  # type: ignore[no-any-return]
        out = torch.full((H,), -math.inf, device=q.device)
        if len(heads):
            out[heads] = look(q[:, heads], k[:, heads // (H // k.shape[1])], scale, start, documents)
        return out


@register("max_logit", "reference")
def reference(q: Tensor, k: Tensor, scale: float, start: int | Tensor, documents: Tensor | None = None) -> Tensor:
    """The law: every logit, masked."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)  # (B, H, S, K)
    logits = q.float() @ k.float().transpose(-1, -2) * scale  # (B, H, T, S)
    mask = causal_mask(start, q.shape[2], k.shape[2], q.device, documents)
    return logits.masked_fill(~mask, -math.inf).amax((0, 2, 3))


@register("max_logit", "blockwise")
def blockwise(q: Tensor, k: Tensor, scale: float, start: int | Tensor, documents: Tensor | None = None) -> Tensor:
    """Some queries with some keys at a time; blocks that nobody sees are passed over."""
    B, H, T, K = q.shape
    G, S = k.shape[1], k.shape[2]
    machine = "cpu" if q.device.type == "cpu" else "cuda"
    columns = min(S, KEYS[machine])
    rows = min(T, max(_FEWEST_QUERIES, HELD[machine] // (B * H * columns)))
    peak = torch.full((H,), -math.inf, device=q.device)
    for t in range(0, T, rows):
        queries = q[:, :, t : t + rows].float().reshape(B, G, -1, K)  # (B, G, H/G rows, K): heads that share keys
        n = min(rows, T - t)
        # Where rows differ in their start, how far the furthest sees is known to the device alone.
        end = min(S, start + t + n) if isinstance(start, int) else S
        for s in range(0, end, columns):
            m = min(columns, end - s)
            keys = k[:, :, s : s + m].float()
            logits = (queries @ keys.transpose(-1, -2)).view(B, H, n, m)
            mask = _visible(start, documents, t, n, s, m, q.device)
            if mask is not None:
                logits.masked_fill_(~mask, -math.inf)
            peak = torch.maximum(peak, logits.amax((0, 2, 3)))
    # Rounding keeps order: the largest product times the scale is the largest of the products times the scale.
    return peak * scale


def _visible(
    start: int | Tensor, documents: Tensor | None, t: int, n: int, s: int, m: int, device: torch.device
) -> Tensor | None:
    """Which of keys s .. s + m - 1 each of queries t .. t + n - 1 sees: [n, m] or [B, 1, n, m]. None: all of them."""
    if isinstance(start, int) and documents is None and s + m - 1 <= start + t:
        return None
    mask = causal_mask(start + t - s, n, m, device)
    if documents is not None:
        mask = mask & (documents[:, None, t : t + n, None] == documents[:, None, None, s : s + m])
    return mask
