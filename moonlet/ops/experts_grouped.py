"""Routed experts with one product for all of them: torch's grouped matrix product, of rows in order of experts.

Where experts' rows begin and end stays on the device: no step waits for it. Made for GPUs, whose kernels take any
number of rows; a CPU works through the experts one by one inside, and builds a kernel for every row count it has not
met.

M = N A rows, others as in `moonlet.ops.experts`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_grouped_mm: Callable[..., Tensor] | None = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
_ALIGNED = 8  # elements of bf16: the 16 bytes on which a GPU's kernels want every row to begin


def suits(x: Tensor, gate_up: Tensor) -> bool:
    """Whether this is the implementation of choice: bf16 on a GPU of compute capability 8 or more, aligned widths."""
    if x.device.type != "cuda" or x.dtype != torch.bfloat16 or _grouped_mm is None or torch.version.hip:
        return False
    aligned = x.shape[-1] % _ALIGNED == 0 and gate_up.shape[1] // 2 % _ALIGNED == 0
    return aligned and torch.cuda.get_device_capability(x.device)[0] >= 8


def grouped_experts(
    x: Tensor, gate_up: Tensor, down: Tensor, index: Tensor, weight: Tensor, plus: Tensor | None = None
) -> Tensor:
    """As `moonlet.ops.experts.experts`."""
    y: Tensor = _Grouped.apply(x, gate_up.to(x.dtype), down.to(x.dtype), index, weight)  # type: ignore[no-untyped-call]
    return y if plus is None else y + plus


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gate_up, down, index, weight):  # type: ignore[no-untyped-def]
        (N, A), E = index.shape, gate_up.shape[0]
        flat = index.reshape(-1)  # (M)
        order = torch.argsort(flat, stable=True)  # (M): the copy in each row
        # Sums of ones are exact in any order; bincount would wait for the device to learn its length.
        count = torch.zeros(E, dtype=torch.int64, device=x.device).scatter_add_(0, flat, torch.ones_like(flat))
        ends = count.cumsum(0).to(torch.int32)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(N * A, device=x.device))  # (M)
        token = order // A
        ws = weight.reshape(-1).index_select(0, order)[:, None].to(x.dtype)  # (M, 1)
        xs = x.index_select(0, token)  # (M, D)
        h = _product(xs, gate_up.mT, ends)  # (M, 2I)
        gate, up = h.chunk(2, -1)
        ys = _product(F.silu(gate) * up * ws, down.mT, ends)  # (M, D)
        y = ys.index_select(0, place).view(N, A, -1).sum(1)
        ctx.save_for_backward(xs, h, gate_up, down, ws, ends, count, place, token)
        return y

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        xs, h, gate_up, down, ws, ends, count, place, token = ctx.saved_tensors
        N, I = len(dy), down.shape[2]
        dys = dy.contiguous().index_select(0, token)  # (M, D), not yet weighted
        gate, up = h.chunk(2, -1)
        silu = F.silu(gate)
        a = silu * up
        da = _product(dys, down, ends)  # (M, I), not yet weighted
        d_ws = (da * a).float().sum(-1)  # (M)
        da = da * ws
        dh = torch.empty_like(h)
        torch.mul(da, silu, out=dh[:, I:])
        dh[:, :I] = torch.ops.aten.silu_backward(da * up, gate)
        none = (count == 0)[:, None, None]  # of experts without rows a kernel may leave what was there
        d_down = _product(dys.t(), a * ws, ends).masked_fill(none, 0)
        d_gate_up = _product(dh.t(), xs, ends).masked_fill(none, 0)
        dxs = _product(dh, gate_up, ends)
        dx = dxs.index_select(0, place).view(N, -1, xs.shape[1]).sum(1)
        return dx, d_gate_up, d_down, None, d_ws.index_select(0, place).view(N, -1)


def _product(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """Rows up to each end with a matrix of their own; or, both 2-D, a sum over these rows for each."""
    assert _grouped_mm is not None, "this torch has no grouped product"
    return _grouped_mm(a, b, offs=ends)
