"""Routed experts on a CPU: matrix products by torch's library, and all that lies between them in C++ passes.

With n the token of row r, w_r its weight for the row's expert, and h = [gate | up]:

    xs_r = x_n          h = xs gate_up_e^T       a_r = w_r silu(gate_r) up_r       y_n = plus_n + sum_r down_e a_r
    dys_r = dy_n        da = dys down_e          dw_r = <da_r, a_r / w_r>          dx_n = sum_r dh_r gate_up_e

The weight is multiplied into a, so that neither y nor dys is weighed row by row. Only xs and h are kept for the
backward, which makes a again on its way past h. A gradient in another dtype than the product's, that of fp32 master
weights, is cast expert by expert while the product still lies in the processor's cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moonlet.ops.native.call import DTYPES, kernel, native_fits

# A product that sums over more rows outgrows the caches: 8,192 of them are 20% slower than four times 2,048.
_ROWS_AT_ONCE = 2048


def available(x: Tensor) -> bool:
    """Whether the passes can work on x: on a CPU, in fp32 or bf16, eagerly, where they could be compiled."""
    return native_fits("experts", x)


def native_experts(
    x: Tensor, gate_up: Tensor, down: Tensor, index: Tensor, weight: Tensor, plus: Tensor | None = None
) -> Tensor:
    """As `moonlet.ops.experts.experts`."""
    return _Native.apply(x, gate_up, down, index, weight, plus)  # type: ignore[no-any-return,no-untyped-call]


def rows_to(copies: int, n_experts: int) -> int:
    """The multiple to which each expert's rows are filled up. Above it the last tile of a product is nearly free."""
    return 128 if copies >= 128 * n_experts else 16


class _Layout:
    """Which copy of a token lies in which row, every expert's rows together and filled up.

    `copy` int32 [rows], -1 for filling; `place` int32 [N, A]; `segments`: (expert, first row, row behind its last).
    """

    def __init__(self, index: Tensor, n_experts: int) -> None:
        copies, pad = index.numel(), rows_to(index.numel(), n_experts)
        # Buffers have the size that suffices however the tokens spread: the same at every step.
        self.most = copies + min(n_experts, copies) * (pad - 1)
        copy = torch.empty(self.most, dtype=torch.int32)
        self.place = torch.empty(index.shape, dtype=torch.int32)
        ends = torch.empty(n_experts, dtype=torch.int64)
        kernel("experts", "experts_layout")(index, copies, n_experts, pad, copy, self.place, ends)
        self.rows = int(ends[-1])
        assert self.rows >= 0, f"an expert's index is not in 0..{n_experts - 1}"
        last = ends.tolist()
        self.segments = [(e, a, b) for e, (a, b) in enumerate(zip([0, *last], last, strict=False)) if a < b]
        self.copy = copy[: self.rows]

    def buffer(self, like: Tensor, width: int) -> Tensor:
        """Uninitialised [rows, width]."""
        return like.new_empty(self.most, width)[: self.rows]


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gate_up, down, index, weight, plus):  # type: ignore[no-untyped-def]
        name = DTYPES[x.dtype]
        x, index, weight = x.contiguous(), index.contiguous(), weight.float().contiguous()
        gate_up_c, down_c = gate_up.to(x.dtype), down.to(x.dtype)
        plus = None if plus is None else plus.contiguous()
        E, D, I = down.shape
        layout = _Layout(index, E)
        xs, h = layout.buffer(x, D), layout.buffer(x, 2 * I)
        a, ys = layout.buffer(x, I), layout.buffer(x, D)
        _gather(x, layout, xs)
        for e, lo, hi in layout.segments:
            torch.mm(xs[lo:hi], gate_up_c[e].t(), out=h[lo:hi])
            kernel("experts", f"experts_swiglu_{name}")(h[lo], layout.copy[lo:], weight, a[lo], hi - lo, I)
            torch.mm(a[lo:hi], down_c[e].t(), out=ys[lo:hi])
        y = torch.empty_like(x)
        _gather_sum(ys, layout, plus, y)
        ctx.layout, ctx.dtypes = layout, (gate_up.dtype, down.dtype)
        ctx.save_for_backward(xs, h, gate_up_c, down_c, weight)
        return y

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        xs, h, gate_up, down, weight = ctx.saved_tensors
        layout: _Layout = ctx.layout
        name = DTYPES[xs.dtype]
        dy = dy.contiguous()
        D, I = down.shape[1:]
        d_gate_up, d_down = torch.empty_like(gate_up, dtype=ctx.dtypes[0]), torch.empty_like(down, dtype=ctx.dtypes[1])
        d_weight = torch.empty_like(weight)
        dys, da, dh = layout.buffer(xs, D), layout.buffer(xs, I), layout.buffer(xs, 2 * I)
        a, dxs = layout.buffer(xs, I), layout.buffer(xs, D)
        _gather(dy, layout, dys)
        for e in set(range(len(down))) - {e for e, _, _ in layout.segments}:
            d_gate_up[e].zero_()
            d_down[e].zero_()
        for e, lo, hi in layout.segments:
            torch.mm(dys[lo:hi], down[e], out=da[lo:hi])
            kernel("experts", f"experts_swiglu_backward_{name}")(
                h[lo], da[lo], layout.copy[lo:], weight, dh[lo], a[lo], d_weight, hi - lo, I
            )
            _sum_of_rows(dys[lo:hi], a[lo:hi], d_down[e])
            _sum_of_rows(dh[lo:hi], xs[lo:hi], d_gate_up[e])
            torch.mm(dh[lo:hi], gate_up[e], out=dxs[lo:hi])
        dx = torch.empty_like(dy)
        _gather_sum(dxs, layout, None, dx)
        return dx, d_gate_up, d_down, None, d_weight, dy if ctx.needs_input_grad[5] else None


def _sum_of_rows(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a^T b, of a [m, .] and b [m, .], in out's dtype."""
    if len(a) <= _ROWS_AT_ONCE and out.dtype == a.dtype:
        torch.mm(a.t(), b, out=out)
        return
    parts = zip(a.split(_ROWS_AT_ONCE), b.split(_ROWS_AT_ONCE), strict=True)
    products = (torch.mm(part.t(), other) for part, other in parts)
    if len(a) <= _ROWS_AT_ONCE:
        out.copy_(next(products))
        return
    total = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    total.copy_(next(products))
    for product in products:
        total += product
    if total is not out:
        out.copy_(total)


def _gather(x: Tensor, layout: _Layout, to: Tensor) -> None:
    """Each copy's row of x [N, D] into its row of `to` [rows, D]; zeros elsewhere."""
    if layout.rows:
        A, size = layout.place.shape[1], x.shape[1] * x.element_size()
        kernel("experts", "experts_gather")(x, layout.copy, to, layout.rows, A, size)


def _gather_sum(rows: Tensor, layout: _Layout, plus: Tensor | None, out: Tensor) -> None:
    """out [N, D] = plus + the sum of each token's rows."""
    N, A = layout.place.shape
    pass_ = kernel("experts", f"experts_gather_sum_{DTYPES[out.dtype]}")
    extra = None if plus is None else plus
    pass_(rows, layout.place, extra, out, N, A, out.shape[1])
