"""Products with weights that lie in memory in few bits: y = x W^T, and the routed experts.

`reference` is the law: dequantise, in x's dtype, then multiply. `native` does it on a CPU without ever holding the
weight: for few rows each code is looked up as it is multiplied, at the speed of memory; for many, one expert at a time
is dequantised for the usual product. `dequantised` does the latter in PyTorch alone, on any device, and for the tokens
of a decode step all their experts at once, so that a GPU is not waited for. Activations are never quantised, so the
three differ by the rounding of their arithmetic alone.

N tokens, A experts a token, E experts, D hidden size, I expert width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.ops import experts, low_bit_native
from moonlet.ops.dispatch import implementation, register
from moonlet.ops.low_bit_codes import Packed

CANNOT_TRAIN = "packed weights cannot be trained: load the model dequantised, which gives it weights that can"
_FEW = 64  # N A, up to which a device dequantises each token's experts rather than ask which ones were chosen


def low_bit_linear(x: Tensor, weight: Packed) -> Tensor:
    """x W^T.

    Args:
        x: [..., in], any float dtype.
        weight: of shape [out, in].

    Returns:
        [..., out] in x's dtype. Its backward raises ValueError: the weight takes no gradient, and passes none on.
    """
    run = implementation("low_bit_linear", "native" if low_bit_native.available(x, weight) else "reference")
    return _without_gradient(run, x, weight)


def low_bit_experts(
    x: Tensor, gate_up: Packed, down: Packed, index: Tensor, weight: Tensor, plus: Tensor | None = None
) -> Tensor:
    """Mix each token's experts, as `moonlet.ops.experts.experts`.

    Args:
        x: [N, D], compute dtype.
        gate_up: of shape [E, 2, I, D]; gate first, then up.
        down: [E, D, I], of the same scheme.
        index: int64 [N, A], each in 0..E-1.
        weight: fp32 [N, A].
        plus: [N, D] in x's dtype, added to the result.

    Returns:
        [N, D] in x's dtype. Its backward raises ValueError.
    """
    choice = "native" if low_bit_native.available(x, gate_up, down) else "dequantised"
    return _without_gradient(implementation("low_bit_experts", choice), x, gate_up, down, index, weight, plus)


@register("low_bit_linear", "reference")
def reference_linear(x: Tensor, weight: Packed) -> Tensor:
    """The law."""
    return F.linear(x, weight.dequantize(x.dtype))


register("low_bit_linear", "native")(low_bit_native.native_linear)


@register("low_bit_experts", "reference")
def reference_experts(
    x: Tensor, gate_up: Packed, down: Packed, index: Tensor, weight: Tensor, plus: Tensor | None = None
) -> Tensor:
    """The law: all experts as they were before they were packed."""
    whole = gate_up.dequantize(x.dtype).flatten(1, 2), down.dequantize(x.dtype)
    return experts.reference(x, *whole, index, weight, plus)


register("low_bit_experts", "native")(low_bit_native.native_experts)


@register("low_bit_experts", "dequantised")
def dequantised(
    x: Tensor, gate_up: Packed, down: Packed, index: Tensor, weight: Tensor, plus: Tensor | None = None
) -> Tensor:
    """On any device: an expert at a time, or, of few tokens on a GPU, each token's own experts at once."""
    if x.is_cuda and index.numel() <= _FEW:
        return gathered(x, gate_up, down, index, weight, plus)
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for e in index.unique().tolist():
        token, slot = torch.where(index == e)
        out = _swiglu(x[token], gate_up[e].dequantize(x.dtype).flatten(0, 1), down[e].dequantize(x.dtype))
        y.index_add_(0, token, out.float() * weight[token, slot, None])
    return (y if plus is None else y + plus).to(x.dtype)


def gathered(
    x: Tensor, gate_up: Packed, down: Packed, index: Tensor, weight: Tensor, plus: Tensor | None = None
) -> Tensor:
    """Every token's experts, each for itself, however often one is chosen; nothing is asked of the device."""
    (N, A), chosen = index.shape, index.flatten()
    rows = x.repeat_interleave(A, 0)[:, :, None]  # (NA, D, 1)
    h = torch.bmm(gate_up[chosen].dequantize(x.dtype).flatten(1, 2), rows)  # (NA, 2I, 1)
    gate, up = h.chunk(2, 1)
    out = torch.bmm(down[chosen].dequantize(x.dtype), F.silu(gate) * up)[..., 0]  # (NA, D)
    y = (out.float().view(N, A, -1) * weight[..., None]).sum(1)
    return (y if plus is None else y + plus).to(x.dtype)


def _swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = F.linear(x, gate_up).chunk(2, -1)
    return F.linear(F.silu(gate) * up, down)


def _without_gradient(run: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """run(*arguments), whose backward says why there is none."""
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return run(*arguments)
    return _NoGradient.apply(run, *arguments)  # type: ignore[no-any-return,no-untyped-call]


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, *arguments):  # type: ignore[no-untyped-def]
        return run(*arguments)

    @staticmethod
    def backward(ctx, *gradients):  # type: ignore[no-untyped-def]
        raise ValueError(CANNOT_TRAIN)
