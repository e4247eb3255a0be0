"""The short convolution of Kimi delta attention: each channel mixes its last W inputs, then SiLU.

    c_t = sum_j w_{W-1-j} x_{t-j},  j = 0 .. W-1        the last tap is the token itself
    y_t = c_t sigmoid(c_t)
    and for queries and keys, head by head:  y / sqrt(sum y^2 + 1e-6)

`reference` is PyTorch's grouped convolution. `tiled` takes a few tokens at a time through all of it, forward and
backward, while they lie in the cache; of the activations it keeps the input alone and computes the rest again in the
backward. All arithmetic is fp32 whatever the dtype of x (fp64 where x is).

B batch, T time, C channels, W taps, K width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moonlet.ops.dispatch import implementation, register
from moonlet.ops.short_conv_native import fits
from moonlet.ops.tiles import arithmetic, tile_elements

L2_EPS = 1e-6  # under the root, as in the published kernels; not a floor as in F.normalize
_FEWEST = 32  # tokens a tile, so that computing the W - 1 behind it once more costs little


def short_conv(
    x: Tensor,
    weight: Tensor,
    *,
    head_dim: int | None = None,
    before: Tensor | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """Convolve causally, channel by channel.

    Args:
        x: [B, T, C], any float dtype; may be a view.
        weight: [C, 1, W], any float dtype; no bias.
        head_dim: K, which divides C: each K channels are brought to length one. None: they stay as they are.
        before: [B, W-1, C], the inputs before the first, as `last_inputs` returns them; None: zeros.
        documents: int64 [B, T], which document each token belongs to; no tap reaches over a border between two. The
            first token continues `before`. None: one document a row.

    Returns:
        [B, T, C] in x's dtype.
    """
    choice = "native" if fits(x, weight, before, documents) else "tiled"
    return implementation("short_conv", choice)(x, weight, head_dim, before, documents)  # type: ignore[no-any-return]


def last_inputs(x: Tensor, before: Tensor | None, count: int) -> Tensor:
    """The last `count` inputs up to the end of x [B, T, C], [B, count, C]: what the next call takes as `before`."""
    B, T, C = x.shape
    if count <= T:
        return x[:, T - count :]
    before = x.new_zeros(B, count, C) if before is None else before
    return torch.cat((before[:, T:], x), 1)


def l2_normed(y: Tensor) -> Tensor:
    """y / sqrt(sum y^2 + 1e-6) over the last axis."""
    return y * (y.square().sum(-1, keepdim=True) + L2_EPS).rsqrt()


@register("short_conv", "reference")
def reference(
    x: Tensor, weight: Tensor, head_dim: int | None, before: Tensor | None, documents: Tensor | None
) -> Tensor:
    """The law: one grouped convolution, or with documents one for each."""
    if documents is not None:
        rows = []
        for b, row in enumerate(documents):
            counts = torch.unique_consecutive(row, return_counts=True)[1].tolist()
            known = None if before is None else before[b : b + 1]
            parts = x[b : b + 1].split(counts, 1)
            done = [reference(p, weight, head_dim, None if i else known, None) for i, p in enumerate(parts)]
            rows.append(torch.cat(done, 1))
        return torch.cat(rows)
    wide, W = arithmetic(x.dtype), weight.shape[2]
    inputs = torch.cat((x.new_zeros(x.shape[0], W - 1, x.shape[2]) if before is None else before, x), 1)
    y = F.silu(F.conv1d(inputs.to(wide).transpose(1, 2), weight.to(wide), groups=x.shape[2]).transpose(1, 2))
    if head_dim is not None:
        y = l2_normed(y.unflatten(-1, (-1, head_dim))).flatten(-2)
    return y.to(x.dtype)


@register("short_conv", "tiled")
def tiled(x: Tensor, weight: Tensor, head_dim: int | None, before: Tensor | None, documents: Tensor | None) -> Tensor:
    """Shifted products a few tokens at a time, and a backward that computes them again."""
    segment = None
    if documents is not None:
        # Which run of equal documents a token belongs to, as an id may come back; padded as if `before` were of the
        # first one.
        new = documents[:, 1:] != documents[:, :-1]
        segment = F.pad(new.cumsum(1), (weight.shape[2], 0))  # (B, W-1 + T)
    out: Tensor = _ShortConv.apply(x, weight, before, segment, head_dim)  # type: ignore[no-untyped-call]
    return out


class _ShortConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, before, segment, head_dim):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight, before, segment)
        ctx.head_dim = head_dim
        taps = _taps(weight, x)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for tile in _tiles(x):
            rows, a, b = tile
            y = F.silu(_Window(x, before, segment, taps, tile).convolved(), inplace=True)
            if head_dim is not None:
                heads = y.unflatten(-1, (-1, head_dim))
                heads *= _inverse_length(heads)
            out[rows, a:b] = y
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):  # type: ignore[no-untyped-def]
        x, weight, before, segment = ctx.saved_tensors
        taps, T = _taps(weight, x), x.shape[1]
        W, C = taps.shape
        d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        d_before = None if before is None else torch.zeros(before.shape, dtype=taps.dtype, device=x.device)
        d_taps = torch.zeros_like(taps)
        sums: Tensor | None = None
        for rows, a, b in _tiles(x):
            end = min(b + W - 1, T)  # the taps of the next W - 1 tokens reach into this tile
            window = _Window(x, before, segment, taps, (rows, a, end))
            d_c = _through_silu(window.convolved(), d_out[rows, a:end], ctx.head_dim)
            # Sums over tokens, a product each: adding up tiles first leaves one sum over time for all of them.
            if sums is None or sums.shape[1:3] != (rows.stop - rows.start, b - a):
                d_taps += 0 if sums is None else sums.sum((1, 2))
                sums = taps.new_zeros(W, rows.stop - rows.start, b - a, C)
            d = taps.new_zeros(rows.stop - rows.start, b - a, C)
            for j in range(W):
                reached = window.cut(d_c, j)
                sums[W - 1 - j].addcmul_(reached[:, : b - a], window.tap(j)[:, : b - a])
                here = reached[:, j : j + b - a]  # what tokens j later say of tokens a .. b - 1
                d[:, : here.shape[1]].addcmul_(here, taps[W - 1 - j])
                if a == 0 and j and d_before is not None:
                    early = reached[:, :j]
                    d_before[rows, W - 1 - j :][:, : early.shape[1]].addcmul_(early, taps[W - 1 - j])
            d_x[rows, a:b] = d
        d_taps += 0 if sums is None else sums.sum((1, 2))
        d_weight = d_taps.t()[:, None].to(weight.dtype)
        return d_x, d_weight, None if d_before is None else d_before.to(before.dtype), None, None


class _Window:
    """The inputs that tokens a .. b - 1 of some rows see, [rows, W-1 + b-a, C], in the dtype of the arithmetic."""

    def __init__(
        self, x: Tensor, before: Tensor | None, segment: Tensor | None, taps: Tensor, tile: tuple[slice, int, int]
    ) -> None:
        rows, a, b = tile
        self.taps, self.past, self.length = taps, taps.shape[0] - 1, b - a
        if a >= self.past and x.dtype == taps.dtype:
            self.inputs = x[rows, a - self.past : b]
        else:
            self.inputs = taps.new_zeros(rows.stop - rows.start, self.past + b - a, x.shape[2])
            known = min(a, self.past)
            self.inputs[:, self.past - known :] = x[rows, a - known : b]
            if before is not None and known < self.past:
                self.inputs[:, : self.past - known] = before[rows, known:]
        self.segment = None
        if segment is not None:
            part = segment[rows, a : b + self.past]
            # On a CPU many tiles lie within one document, and asking costs nothing.
            if x.device.type != "cpu" or not torch.equal(part[:, 0], part[:, -1]):
                self.segment = part

    def tap(self, j: int) -> Tensor:
        """The input j before each token. [rows, b-a, C]"""
        return self.inputs[:, self.past - j : self.past - j + self.length]

    def cut(self, value: Tensor, j: int) -> Tensor:
        """`value` [rows, b-a, C], zero for tokens whose document began less than j before."""
        if self.segment is None or not j:
            return value
        same = self.segment[:, self.past :] == self.segment[:, self.past - j : self.past - j + self.length]
        return torch.where(same[..., None], value, 0.0)  # not a product: what is not seen may hold anything

    def convolved(self) -> Tensor:
        """[rows, b-a, C]"""
        mend = self.segment is not None and self.inputs.device.type == "cpu"
        c = self.tap(0) * self.taps[-1]
        for j in range(1, self.past + 1):
            c.addcmul_(self.tap(j) if mend else self.cut(self.tap(j), j), self.taps[self.past - j])
        return self._mended(c) if mend else c

    def _mended(self, c: Tensor) -> Tensor:
        """Compute the few tokens near the beginning of a document again: cheaper than to mask every tap of all."""
        assert self.segment is not None
        row, t = torch.where(self.segment[:, self.past :] != self.segment[:, : self.length])
        own = self.segment[row, t + self.past]
        total = self.inputs[row, t + self.past] * self.taps[-1]  # (n, C)
        for j in range(1, self.past + 1):
            same = own == self.segment[row, t + self.past - j]
            seen = torch.where(same[:, None], self.inputs[row, t + self.past - j], 0.0)
            total.addcmul_(seen, self.taps[self.past - j])
        c[row, t] = total
        return c


def _through_silu(c: Tensor, d_y: Tensor, head_dim: int | None) -> Tensor:
    """The gradient of c from that of the output."""
    d_y = d_y.to(c.dtype)
    if head_dim is not None:
        y = F.silu(c).unflatten(-1, (-1, head_dim))
        inverse = _inverse_length(y)
        y *= inverse
        d = d_y.unflatten(-1, (-1, head_dim))
        along = (d * y).sum(-1, keepdim=True)  # a length that is fixed has no gradient along itself
        d_y = torch.addcmul(d, y, along, value=-1).mul_(inverse).flatten(-2)
    return torch.ops.aten.silu_backward(d_y, c)  # type: ignore[no-any-return]


def _inverse_length(heads: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(heads, 2, -1, True)
    return length.square_().add_(L2_EPS).rsqrt_()


def _taps(weight: Tensor, x: Tensor) -> Tensor:
    """[W, C] in the dtype of the arithmetic."""
    return weight[:, 0].to(arithmetic(x.dtype)).t().contiguous()


def _tiles(x: Tensor) -> Iterator[tuple[slice, int, int]]:
    """Rows, first token and end of each tile."""
    B, T, C = x.shape
    tokens = max(_FEWEST, tile_elements(x.device) // C)
    rows, span = max(1, tokens // T), min(T, tokens)
    for row in range(0, B, rows):
        for a in range(0, T, span):
            yield slice(row, min(row + rows, B)), a, min(a + span, T)
