"""RMSNorm of each head times its gate: how much of what KDA recalls is let out.

    y = o / sqrt(mean o^2 + eps) * w * sigmoid(z)

All of it is fp32 whatever the dtype of the activations (fp64 where they are), cast once at the end. `reference` is
that line, for which autograd keeps five tensors; `tiled` and `native` keep o and z alone. The former takes a few tokens
at a time through the chain while they lie in the cache, the latter is one kernel each way.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moonlet.ops.dispatch import implementation, register
from moonlet.ops.native.call import DTYPES, as_rows, kernel, native_fits
from moonlet.ops.tiles import arithmetic, pieces

_BLOCK = 64  # rows whose share of the weight's gradient is summed together, as in kda.cpp


def gated_norm(o: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last axis and gate it.

    Args:
        o: [..., K], any float dtype.
        gate: the same shape, any float dtype; before the sigmoid.
        weight: [K].
        eps: added to the mean square.

    Returns:
        The same shape, in o's dtype.
    """
    choice = "native" if native_fits("kda", o, gate, weight) and o.dtype == gate.dtype else "tiled"
    return implementation("gated_norm", choice)(o, gate, weight, eps)  # type: ignore[no-any-return]


@register("gated_norm", "reference")
def reference(o: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The law."""
    h = o.to(arithmetic(o.dtype))
    normed = h * (h.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (normed * weight.to(h.dtype) * gate.to(h.dtype).sigmoid()).to(o.dtype)


@register("gated_norm", "tiled")
def tiled(o: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """A few tokens at a time, and a backward that computes all of it again."""
    out: Tensor = _GatedNorm.apply(o, gate, weight, eps)  # type: ignore[no-untyped-call]
    return out


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, o, gate, weight, eps):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(o, gate, weight)
        ctx.eps = eps
        wide, K = arithmetic(o.dtype), o.shape[-1]
        y = torch.empty(o.shape, dtype=o.dtype, device=o.device)
        rows, gates, out, w = o.reshape(-1, K), gate.reshape(-1, K), y.view(-1, K), weight.to(wide)
        for piece in pieces(len(rows), K, o.device):
            h = rows[piece].to(wide)
            out[piece] = torch.sigmoid(gates[piece].to(wide)).mul_(h).mul_(w).mul_(_inverse_size(h, eps))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y):  # type: ignore[no-untyped-def]
        o, gate, weight = ctx.saved_tensors
        wide, K = arithmetic(o.dtype), o.shape[-1]
        d_o, d_gate = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (o, gate))
        rows, gates, d_rows = o.reshape(-1, K), gate.reshape(-1, K), d_y.reshape(-1, K)
        out, out_gate, w = d_o.view(-1, K), d_gate.view(-1, K), weight.to(wide)
        d_weight = torch.zeros_like(w)
        for piece in pieces(len(rows), K, o.device):
            h, passed = rows[piece].to(wide), torch.sigmoid(gates[piece].to(wide))
            shut, inverse = 1 - passed, _inverse_size(h, ctx.eps)
            normed = h * inverse
            d = passed.mul_(d_rows[piece])  # the gradient of what is gated
            d_weight += (d * normed).sum(0)
            d *= w
            along = (d * normed).mean(-1, keepdim=True)  # a size that is fixed has no gradient along itself
            out_gate[piece] = shut.mul_(normed).mul_(d)  # sigmoid' = s (1 - s), and d holds s
            out[piece] = d.addcmul_(normed, along, value=-1).mul_(inverse)
        return d_o, d_gate, d_weight.to(weight.dtype), None


def _inverse_size(h: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean h^2 + eps), [..., 1]"""
    length: Tensor = torch.linalg.vector_norm(h, 2, -1, True)
    return length.square_().div_(h.shape[-1]).add_(eps).rsqrt_()


@register("gated_norm", "native")
def native(o: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """One kernel each way."""
    out: Tensor = _Native.apply(o, gate, weight, eps)  # type: ignore[no-untyped-call]
    return out


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx, o, gate, weight, eps):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(o, gate, weight)
        ctx.eps = float(eps)
        y = torch.empty(o.shape, dtype=o.dtype)
        rows, gates, w = as_rows(o), as_rows(gate), weight.float().contiguous()
        kernel("kda", f"gated_{DTYPES[o.dtype]}")(
            *map(Tensor.data_ptr, (rows, gates, w, y)), *rows.shape, rows.stride(0), gates.stride(0), ctx.eps
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y):  # type: ignore[no-untyped-def]
        o, gate, weight = ctx.saved_tensors
        rows, gates, d_rows, w = as_rows(o), as_rows(gate), as_rows(d_y), weight.float().contiguous()
        d_o, d_gate = (torch.empty(x.shape, dtype=x.dtype) for x in (o, gate))
        sums = torch.empty(-(-len(rows) // _BLOCK), len(w))
        kernel("kda", f"gated_backward_{DTYPES[o.dtype]}")(
            *map(Tensor.data_ptr, (d_rows, rows, gates, w, d_o, d_gate, sums)),
            *rows.shape, d_rows.stride(0), rows.stride(0), gates.stride(0), ctx.eps,
        )  # fmt: skip
        return d_o, d_gate, sums.sum(0).to(weight.dtype), None
