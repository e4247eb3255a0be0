"""MLA's expanded attention from what its projections leave in memory, for a CPU: nothing turned or joined between.

    q [B, T, H, K+P],   kv [B, T, H, K+V],   k_rope [B, T, P]   one for all heads
    y = softmax([q_nope | rope(q_rope)] [k_nope | rope(k_rope)]^T scale) v

`reference` turns, joins and attends; `native` has the kernel of ops/attention_native do it while it reads, and gives
the gradients in the layout of the inputs. On the way it may note each query's largest logit, which QK-Clip needs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moonlet.ops import attention_native
from moonlet.ops.attention import attention
from moonlet.ops.attention_native import Call, dense_rows
from moonlet.ops.dispatch import chosen, implementation, register
from moonlet.ops.max_logit import max_logit
from moonlet.ops.rope import Rotation, rotate


def fits(q: Tensor, kv: Tensor, k_rope: Tensor, value_width: int, documents: Tensor | None) -> bool:
    """Whether the kernel takes these and is the faster; arguments as in `latent_attention`. Where some implementation
    of `attention` is forced, whoever did so wants to see that one run."""
    k, v = _halves(kv, value_width)
    if q.shape[1] < 2 or k_rope.dtype != q.dtype or not attention_native.fits(q.transpose(1, 2), k, v, 0, documents):
        return False
    return chosen("attention", "native") == "native"


def latent_attention(
    q: Tensor,
    kv: Tensor,
    k_rope: Tensor,
    *,
    value_width: int,
    rotation: Rotation | None,
    scale: float,
    documents: Tensor | None = None,
    largest: Tensor | None = None,
) -> Tensor:
    """Attend causally among T tokens.

    Args:
        q: [B, T, H, K+P], fp32 or bf16, the last P channels before their turn.
        kv: [B, T, H, K+V], same dtype.
        k_rope: [B, T, P], same dtype, before its turn; rows may lie apart.
        value_width: V.
        rotation: cos and sin of the T positions, each fp32 [T, P/2] or [B, T, P/2]; None: nothing turns.
        scale: what the logits are multiplied by.
        documents: int64 [B, T] or None, as in `ops.attention`.
        largest: fp32 [H] or None; raised to each head's largest logit where that is above it.

    Returns:
        [B, T, H, V]
    """
    choice = "native" if fits(q, kv, k_rope, value_width, documents) else "reference"
    return implementation("latent_attention", choice)(  # type: ignore[no-any-return]
        q, kv, k_rope, value_width, rotation, scale, documents, largest
    )


@register("latent_attention", "reference")
def reference(
    q: Tensor,
    kv: Tensor,
    k_rope: Tensor,
    value_width: int,
    rotation: Rotation | None,
    scale: float,
    documents: Tensor | None = None,
    largest: Tensor | None = None,
) -> Tensor:
    """The law."""
    P, k_turned = k_rope.shape[-1], k_rope.unsqueeze(2)  # (B, T, 1, P)
    own, q_turned = q.split((q.shape[-1] - P, P), -1)
    if rotation is not None:
        q_turned, k_turned = rotate(q_turned, rotation), rotate(k_turned, rotation)
    queries = torch.cat((own, q_turned), -1).transpose(1, 2)  # (B, H, T, K+P)
    k, v = _halves(kv, value_width)
    k = torch.cat((k, k_turned.transpose(1, 2).expand(-1, k.shape[1], -1, -1)), -1)  # (B, H, T, K+P)
    if largest is not None:
        torch.maximum(largest, max_logit(queries.detach(), k.detach(), scale=scale, documents=documents), out=largest)
    return attention(queries, k, v, scale=scale, documents=documents).transpose(1, 2)


@register("latent_attention", "native")
def native(
    q: Tensor,
    kv: Tensor,
    k_rope: Tensor,
    value_width: int,
    rotation: Rotation | None,
    scale: float,
    documents: Tensor | None = None,
    largest: Tensor | None = None,
) -> Tensor:
    """One kernel each way."""
    out: Tensor = _Latent.apply(q, kv, k_rope, value_width, rotation, scale, documents, largest)  # type: ignore[no-untyped-call]
    return out


def _halves(kv: Tensor, value_width: int) -> tuple[Tensor, Tensor]:
    """[B, T, H, K+V] -> [B, H, T, K] and [B, H, T, V]"""
    heads = kv.transpose(1, 2)
    return heads[..., : kv.shape[-1] - value_width], heads[..., kv.shape[-1] - value_width :]


class _Latent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, kv, k_rope, value_width, rotation, scale, documents, largest):  # type: ignore[no-untyped-def]
        q, kv, k_rope = (dense_rows(x) for x in (q, kv, k_rope))
        B, T, H, _ = q.shape
        out, lse = torch.empty(B, T, H, value_width, dtype=q.dtype), torch.empty(B, H, T)
        tops = None if largest is None else torch.empty(B, H, T)
        queries, k, v, outs = q.transpose(1, 2), *_halves(kv, value_width), out.transpose(1, 2)
        Call(queries, k, v, outs, scale, 0, documents, k_rope, rotation).run("attention", lse=lse, largest=tops)
        if tops is not None:
            torch.maximum(largest, tops.amax((0, 2)), out=largest)
        ctx.save_for_backward(q, kv, k_rope, out, lse, *(rotation or (None, None)), documents)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):  # type: ignore[no-untyped-def]
        q, kv, k_rope, out, lse, cos, sin, documents = ctx.saved_tensors
        (B, T, H, V), P = out.shape, k_rope.shape[-1]
        d_q, d_kv, d_rope = (torch.empty(x.shape, dtype=x.dtype) for x in (q, kv, k_rope))
        of_heads = torch.empty(B, H, T, P)
        rotation = None if cos is None else (cos, sin)
        k, v = _halves(kv, V)
        d_k, d_v = _halves(d_kv, V)
        call = Call(q.transpose(1, 2), k, v, out.transpose(1, 2), ctx.scale, 0, documents, k_rope, rotation)
        gradients = (dense_rows(d_out).transpose(1, 2), d_q.transpose(1, 2), d_k, d_rope, d_v)
        call.run("attention_backward", gradients, lse=lse, turned=of_heads)
        return d_q, d_kv, d_rope, None, None, None, None, None
