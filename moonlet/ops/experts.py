"""Routed experts: y_n = sum_a w_na down_e (silu(gate_e x_n) * up_e x_n), with e = index[n, a].

`reference` is that sum, expert by expert. `sorted` lays the tokens out by expert once, each expert's rows padded to a
multiple of a fixed count: a CPU's matrix library builds a kernel for every row count it has not met, at ten times the
cost of the product itself. It has a backward of its own, which gathers where autograd would add into duplicates.
`native` does so on a CPU with compiled passes between the products, `grouped_mm` on a GPU with one product for all
experts, and `few` suits the handful of tokens of a decode step.

N tokens, A experts a token, E experts, D hidden size, I expert width, M padded rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.ops import experts_grouped, experts_native
from moonlet.ops.dispatch import implementation, register
from moonlet.ops.experts_native import rows_to


def experts(
    x: Tensor, gate_up: Tensor, down: Tensor, index: Tensor, weight: Tensor, plus: Tensor | None = None
) -> Tensor:
    """Mix each token's experts.

    Args:
        x: [N, D], compute dtype.
        gate_up: [E, 2I, D], any float dtype, cast to x's; gate in the first I rows, up in the rest.
        down: [E, D, I].
        index: int64 [N, A], each in 0..E-1.
        weight: fp32 [N, A].
        plus: [N, D] in x's dtype, added to the result: what the shared experts made of x.

    Returns:
        [N, D] in x's dtype.
    """
    return implementation("experts", choose(x, gate_up, index))(x, gate_up, down, index, weight, plus)  # type: ignore[no-any-return]


def choose(x: Tensor, gate_up: Tensor, index: Tensor) -> str:
    if index.numel() <= 128 and not (torch.is_grad_enabled() and (x.requires_grad or gate_up.requires_grad)):
        return "few"
    if experts_native.available(x):
        return "native"
    return "grouped_mm" if experts_grouped.suits(x, gate_up) else "sorted"


@register("experts", "reference")
def reference(
    x: Tensor, gate_up: Tensor, down: Tensor, index: Tensor, weight: Tensor, plus: Tensor | None = None
) -> Tensor:
    """The law: one expert after the other, summed in fp32."""
    gate_up, down = gate_up.to(x.dtype), down.to(x.dtype)
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for e in range(gate_up.shape[0]):
        token, slot = torch.where(index == e)
        gate, up = F.linear(x[token], gate_up[e]).chunk(2, -1)
        out = F.linear(F.silu(gate) * up, down[e])
        y = y.index_add(0, token, out.float() * weight[token, slot, None])
    return (y if plus is None else y + plus).to(x.dtype)


@register("experts", "few")
def few(x: Tensor, gate_up: Tensor, down: Tensor, index: Tensor, weight: Tensor, plus: Tensor | None = None) -> Tensor:
    """Each expert that was chosen reads its tokens once, without layout work; no gradient."""
    gate_up, down = gate_up.to(x.dtype), down.to(x.dtype)
    if x.shape[0] == 1:
        y = _one(x, gate_up, down, index[0].tolist(), weight[0].tolist())
        return y if plus is None else y.add_(plus)
    tokens: dict[int, list[int]] = {}
    places: dict[int, list[int]] = {}
    for place, e in enumerate(index.flatten().tolist()):
        tokens.setdefault(e, []).append(place // index.shape[1])
        places.setdefault(e, []).append(place)
    w = weight.to(x.dtype).reshape(-1, 1)
    y = torch.zeros_like(x) if plus is None else plus.clone()
    for e in sorted(tokens):
        token, place = torch.tensor((tokens[e], places[e]), device=x.device)
        h = _swiglu(x.index_select(0, token), gate_up[e], down[e])  # (n, D)
        y.index_add_(0, token, h.mul_(w.index_select(0, place)))
    return y


def _one(x: Tensor, gate_up: Tensor, down: Tensor, chosen: list[int], weights: list[float]) -> Tensor:
    """x [1, D] through its experts."""
    y = None
    for e, w in zip(chosen, weights, strict=True):
        out = _swiglu(x, gate_up[e], down[e])
        y = out.mul_(w) if y is None else y.add_(out, alpha=w)
    return torch.zeros_like(x) if y is None else y


def _swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    h = F.linear(x, gate_up)  # (n, 2I)
    gate, up = h.chunk(2, -1)
    return F.linear(F.silu(gate).mul_(up), down)


@register("experts", "sorted")
def sorted_experts(
    x: Tensor, gate_up: Tensor, down: Tensor, index: Tensor, weight: Tensor, plus: Tensor | None = None
) -> Tensor:
    """Tokens sorted by expert once, padded segments, own backward."""
    gate_up, down = gate_up.to(x.dtype), down.to(x.dtype)
    y: Tensor = _Sorted.apply(x, gate_up, down, index, weight)  # type: ignore[no-untyped-call]
    return y if plus is None else y + plus


register("experts", "native")(experts_native.native_experts)
register("experts", "grouped_mm")(experts_grouped.grouped_experts)


class _Layout:
    """Where each token's copies lie in a buffer ordered by expert, every expert's segment a multiple of `pad` rows."""

    def __init__(self, index: Tensor, n_experts: int) -> None:
        flat = index.reshape(-1)  # (N*A)
        copies = flat.numel()
        pad = rows_to(copies, n_experts)
        order = torch.argsort(flat, stable=True)
        count = torch.bincount(flat, minlength=n_experts)  # (E)
        padded = (count + pad - 1) // pad * pad
        shift = (padded.cumsum(0) - padded) - (count.cumsum(0) - count)  # (E): padding rows before an expert
        row = torch.arange(copies, device=flat.device) + shift[flat[order]]
        self.place = torch.empty_like(flat)  # (N*A): row of each token's copy
        self.place[order] = row
        ends = padded.cumsum(0).tolist()
        self.segments = [(e, a, b) for e, (a, b) in enumerate(zip([0, *ends], ends, strict=False)) if a < b]
        self.rows = ends[-1]
        # Padding rows repeat token 0; their weight is zero, so they reach neither the output nor a gradient.
        self.token = torch.zeros(self.rows, dtype=torch.int64, device=flat.device)
        self.token[row] = order // index.shape[1]


class _Sorted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gate_up, down, index, weight):  # type: ignore[no-untyped-def]
        layout = _Layout(index, gate_up.shape[0])
        N, A = index.shape
        D, I = down.shape[1:]
        xs = x.index_select(0, layout.token)  # (M, D)
        h = xs.new_empty(layout.rows, 2 * I)
        a = xs.new_empty(layout.rows, I)
        ys = xs.new_empty(layout.rows, D)
        for e, lo, hi in layout.segments:
            torch.mm(xs[lo:hi], gate_up[e].t(), out=h[lo:hi])
            torch.mul(F.silu(h[lo:hi, :I]), h[lo:hi, I:], out=a[lo:hi])
            torch.mm(a[lo:hi], down[e].t(), out=ys[lo:hi])
        y = _combine(ys, layout.place, weight, N, A)
        ctx.layout = layout
        ctx.save_for_backward(xs, h, a, gate_up, down, weight)
        return y

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        xs, h, a, gate_up, down, weight = ctx.saved_tensors
        layout: _Layout = ctx.layout
        (N, A), I = weight.shape, down.shape[2]
        ws = weight.new_zeros(layout.rows)
        ws[layout.place] = weight.reshape(-1)
        wc = ws.to(dy.dtype)[:, None]  # (M, 1), zero on padding
        dys = dy.contiguous().index_select(0, layout.token)  # (M, D), not yet weighted
        d_gate_up, d_down = torch.zeros_like(gate_up), torch.zeros_like(down)
        d_ws = torch.empty_like(ws)
        dh = torch.empty_like(h)
        dxs = torch.empty_like(xs)
        for e, lo, hi in layout.segments:
            gate, up = h[lo:hi, :I], h[lo:hi, I:]
            da = torch.mm(dys[lo:hi], down[e])  # (m, I), not yet weighted
            torch.mm(dys[lo:hi].t(), a[lo:hi] * wc[lo:hi], out=d_down[e])
            torch.sum(da.mul(a[lo:hi]).float(), -1, out=d_ws[lo:hi])
            da *= wc[lo:hi]
            torch.mul(da, F.silu(gate), out=dh[lo:hi, I:])
            dh[lo:hi, :I] = torch.ops.aten.silu_backward(da.mul_(up), gate)
            torch.mm(dh[lo:hi].t(), xs[lo:hi], out=d_gate_up[e])
            torch.mm(dh[lo:hi], gate_up[e], out=dxs[lo:hi])
        dx = dxs.index_select(0, layout.place).view(N, A, -1).sum(1)
        d_weight = d_ws[layout.place].view(N, A)
        return dx, d_gate_up, d_down, None, d_weight


def _combine(ys: Tensor, place: Tensor, weight: Tensor, N: int, A: int) -> Tensor:
    """Sum over a of weight[n, a] ys[place[n, a]], in ys's dtype. [N, D]"""
    place, w = place.view(N, A), weight.to(ys.dtype)
    y = ys.index_select(0, place[:, 0]).mul_(w[:, :1])
    for slot in range(1, A):
        y.addcmul_(ys.index_select(0, place[:, slot]), w[:, slot : slot + 1])
    return y
