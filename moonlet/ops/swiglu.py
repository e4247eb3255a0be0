"""SwiGLU's elementwise part: silu(gate) * up, with silu(g) = g / (1 + e^-g) (arXiv 2002.05202).

    d_up = d silu(g)        d_gate = d u s (1 + g (1 - s)),   s = sigmoid(g)

`reference` is PyTorch's two operators, whose autograd keeps silu(g) as well; `native` is one pass over memory each way
and keeps its two inputs. Both round silu(g) to the dtype before the product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moonlet.ops.dispatch import implementation, register
from moonlet.ops.native.call import DTYPES, as_rows, kernel, native_fits


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, with gradients.

    Args:
        gate: [..., I], any float dtype. Rows may lie apart, as those of one half of a joint [..., 2 I] do.
        up: the same shape and dtype.

    Returns:
        [..., I], dense, of the same dtype.
    """
    return implementation("swiglu", "native" if native_fits("swiglu", gate, up) else "reference")(gate, up)  # type: ignore[no-any-return]


def swiglu_backward(d_out: Tensor, gate: Tensor, up: Tensor, d_gate: Tensor, d_up: Tensor) -> None:
    """Write the gradients of swiglu into `d_gate` and `d_up`, for who has a backward of his own.

    Args:
        d_out: [N, I], the gradient of swiglu(gate, up).
        gate: [N, I]; up: [N, I]; all of d_out's dtype.
        d_gate: [N, I], is written; its rows may lie apart. It may be `gate` itself.
        d_up: [N, I], is written; as d_gate. It may be `up` itself.
    """
    if native_fits("swiglu", d_out, gate, up, d_gate, d_up) and all(
        x.stride(-1) == 1 for x in (d_out, gate, up, d_gate, d_up)
    ):
        _native_backward(d_out, gate, up, d_gate, d_up)
        return
    to_up = d_out * F.silu(gate)
    d_gate.copy_(torch.ops.aten.silu_backward(d_out * up, gate))
    d_up.copy_(to_up)


@register("swiglu", "reference")
def reference(gate: Tensor, up: Tensor) -> Tensor:
    """The law."""
    return F.silu(gate) * up


@register("swiglu", "native")
def native(gate: Tensor, up: Tensor) -> Tensor:
    """One pass of a C++ kernel."""
    out: Tensor = _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(gate, up)
        out = torch.empty(gate.shape, dtype=gate.dtype)
        g, u = as_rows(gate), as_rows(up)
        kernel("swiglu", f"swiglu_{DTYPES[gate.dtype]}")(
            g.data_ptr(), u.data_ptr(), out.data_ptr(), *g.shape, g.stride(0), u.stride(0), g.shape[1]
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):  # type: ignore[no-untyped-def]
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty(gate.shape, dtype=gate.dtype), torch.empty(up.shape, dtype=up.dtype)
        _native_backward(*map(as_rows, (d_out, gate, up, d_gate, d_up)))
        return d_gate, d_up


def _native_backward(d_out: Tensor, gate: Tensor, up: Tensor, d_gate: Tensor, d_up: Tensor) -> None:
    """[N, I] each."""
    tensors = (d_out, gate, up, d_gate, d_up)
    kernel("swiglu", f"swiglu_backward_{DTYPES[gate.dtype]}")(
        *(x.data_ptr() for x in tensors), *gate.shape, *(x.stride(0) for x in tensors)
    )
