"""The two gates of Kimi delta attention: how fast a channel forgets, and how much of a head is let out.

    g = -e^A softplus(f + b)                        logarithm of the decay; A a number a head, b one a channel
    y = o / sqrt(mean o^2 + eps) * w * sigmoid(z)   RMSNorm of each head times its gate

Both are chains of elementwise operations, of which autograd would keep half a dozen fp32 tensors. The `tiled` forms
keep their inputs alone, and take a few tokens at a time through the whole chain while they lie in the cache.
All arithmetic is fp32 whatever the dtype of the activations (fp64 where they are).

N rows of tokens, H heads, K width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moonlet.ops.dispatch import implementation, register
from moonlet.ops.tiles import pieces


def log_decay(f: Tensor, A_log: Tensor, dt_bias: Tensor) -> Tensor:
    """Logarithm of the decay of each key channel.

    Args:
        f: [..., H, K], any float dtype.
        A_log: [H], fp32.
        dt_bias: [H, K], fp32.

    Returns:
        [..., H, K], fp32 (fp64 where f is), at most 0.
    """
    return implementation("log_decay", "tiled")(f, A_log, dt_bias)  # type: ignore[no-any-return]


def gated_norm(o: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis, times sigmoid(gate), cast once at the end.

    Args:
        o: [..., K], any float dtype.
        gate: the same shape, any float dtype.
        weight: [K].

    Returns:
        The same shape, in o's dtype.
    """
    return implementation("gated_norm", "tiled")(o, gate, weight, eps)  # type: ignore[no-any-return]


@register("log_decay", "reference")
def reference_log_decay(f: Tensor, A_log: Tensor, dt_bias: Tensor) -> Tensor:
    """The law."""
    wide = _arithmetic(f)
    return -A_log.to(wide).exp()[:, None] * F.softplus(f.to(wide) + dt_bias.to(wide))


@register("gated_norm", "reference")
def reference_gated_norm(o: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The law."""
    wide = _arithmetic(o)
    h = o.to(wide)
    h = h * (h.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (h * weight.to(wide) * gate.to(wide).sigmoid()).to(o.dtype)


@register("log_decay", "tiled")
def tiled_log_decay(f: Tensor, A_log: Tensor, dt_bias: Tensor) -> Tensor:
    """A few tokens at a time; keeps f and the result."""
    out: Tensor = _LogDecay.apply(f, A_log, dt_bias)  # type: ignore[no-untyped-call]
    return out


@register("gated_norm", "tiled")
def tiled_gated_norm(o: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """A few tokens at a time; keeps its inputs."""
    out: Tensor = _GatedNorm.apply(o, gate, weight, eps)  # type: ignore[no-untyped-call]
    return out


class _LogDecay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, f, A_log, dt_bias):  # type: ignore[no-untyped-def]
        wide, (H, K) = _arithmetic(f), f.shape[-2:]
        rate, bias = -A_log.to(wide).exp()[:, None], dt_bias.to(wide)
        g = torch.empty(f.shape, dtype=wide, device=f.device)
        rows, out = f.reshape(-1, H, K), g.view(-1, H, K)
        for piece in pieces(len(rows), H * K, f.device):
            torch.mul(F.softplus(rows[piece] + bias), rate, out=out[piece])
        ctx.save_for_backward(f, A_log, dt_bias, g)
        return g

    @staticmethod
    @once_differentiable
    def backward(ctx, d_g):  # type: ignore[no-untyped-def]
        f, A_log, dt_bias, g = ctx.saved_tensors
        H, K = f.shape[-2:]
        rate, bias = -A_log.to(g.dtype).exp()[:, None], dt_bias.to(g.dtype)
        d_f = torch.empty(f.shape, dtype=f.dtype, device=f.device)
        rows, d_rows, out, g = f.reshape(-1, H, K), d_g.reshape(-1, H, K), d_f.view(-1, H, K), g.view(-1, H, K)
        d_A, d_bias = bias.new_zeros(H, K), bias.new_zeros(H, K)
        for piece in pieces(len(rows), H * K, f.device):
            d = torch.sigmoid_(rows[piece] + bias).mul_(d_rows[piece]).mul_(rate)  # softplus' = sigmoid
            d_bias += d.sum(0)
            d_A += (d_rows[piece] * g[piece]).sum(0)  # dg/dA = g
            out[piece] = d
        return d_f, d_A.sum(1).to(A_log.dtype), d_bias.to(dt_bias.dtype)


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, o, gate, weight, eps):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(o, gate, weight)
        ctx.eps = eps
        wide, K = _arithmetic(o), o.shape[-1]
        y = torch.empty(o.shape, dtype=o.dtype, device=o.device)
        rows, gates, out, w = o.reshape(-1, K), gate.reshape(-1, K), y.view(-1, K), weight.to(wide)
        for piece in pieces(len(rows), K, o.device):
            h = rows[piece].to(wide)
            scaled = torch.sigmoid(gates[piece].to(wide)).mul_(h).mul_(w)
            out[piece] = scaled.mul_(_inverse_size(h, eps))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y):  # type: ignore[no-untyped-def]
        o, gate, weight = ctx.saved_tensors
        wide, K = _arithmetic(o), o.shape[-1]
        d_o, d_gate = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (o, gate))
        rows, gates, d_rows = o.reshape(-1, K), gate.reshape(-1, K), d_y.reshape(-1, K)
        out, out_gate, w = d_o.view(-1, K), d_gate.view(-1, K), weight.to(wide)
        d_weight = torch.zeros_like(w)
        for piece in pieces(len(rows), K, o.device):
            h, d = rows[piece].to(wide), d_rows[piece].to(wide)
            inverse, open_ = _inverse_size(h, ctx.eps), torch.sigmoid(gates[piece].to(wide))
            normed = h * inverse
            passed = d * open_  # the gradient of what the gate was given
            d_weight += (passed * normed).sum(0)
            passed *= w
            along = (passed * normed).mean(-1, keepdim=True)
            # sigmoid' = s (1 - s); passed holds d s w
            out_gate[piece] = torch.mul(passed, normed).mul_(1 - open_)
            out[piece] = passed.addcmul_(normed, along, value=-1).mul_(inverse)
        return d_o, d_gate, d_weight.to(weight.dtype), None


def _inverse_size(h: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean h^2 + eps), [..., 1]"""
    length: Tensor = torch.linalg.vector_norm(h, 2, -1, True)
    return length.square_().div_(h.shape[-1]).add_(eps).rsqrt_()


def _arithmetic(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
