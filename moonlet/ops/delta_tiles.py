"""Decays inside a chunk of the delta rule: who sees what was written, and how much is left of it.

A chunk of C tokens has keys and queries that read (x) and keys that are written (w = beta k). Token i sees what token
j <= i wrote through the decays between them, channel by channel:

    seen_ij = sum_d x_i[d] w_j[d] e^(G_i[d] - G_j[d]),   G_i = g_1 + ... + g_i

e^(-G_j) alone leaves the range of fp32 as soon as a channel forgets quickly. So the sum is cut by halves: a token of
the second half of a block sees one of the first through the border R between them, e^(G_i - R) e^(R - G_j), both at
most 1, whatever the decays, a decay to nothing included. From blocks to blocks of twice the size, what reads takes up
the decay of the first half and what is written that of the second, by products of numbers at most 1. Behind the last
doubling x is what reads the state before the chunk, w what is left of a write at the chunk's end, and `left` what is
left of the state.

Doubling starts from tiles in which no channel decays by more than BOUND: there e^(-G_j) is harmless and one
product serves the whole tile. A chunk that forgets slowly is one tile; where single tokens forget more than that, they
are the tiles.

N chunks times heads, C chunk, K key width; the pair (keys that read, queries) is an axis of 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# How much a channel may decay inside a tile, in e-folds: e^64 = 6e27 times inputs up to 1e10 is still a number of fp32,
# and a sum of that size is known to 4e-6, which is how exactly its exponential is.
BOUND = 64.0


@dataclass
class Level:
    """One doubling: blocks of h tokens became blocks of 2h."""

    rows: Tensor  # [N * C/2h, 2 * h, K], what reads in the second halves, before it took up the first half's decay
    columns: Tensor  # [N * C/2h, h, K], what is written in the first halves, likewise
    first: Tensor  # [N, C/2h, K], what the first half leaves of what came before it
    second: Tensor  # [N, C/2h, K], likewise the second


@dataclass
class Tiles:
    """Chunks with their decays applied."""

    tile: int
    reads: Tensor  # [N, 2, C, K], keys and queries as the state before the chunk is read by them
    writes: Tensor  # [N, C, K], beta k; what of it is behind the chunk, or, with one tile, divided by `left`
    left: Tensor  # [N, K], what is left of the state behind the chunk
    seen: Tensor  # [N, 2, C, C], keys see strictly earlier tokens, queries their own too; elsewhere 0
    decay: Tensor  # [N, C, K], e^(sum of g from the tile's first token on)
    levels: list[Level]

    @property
    def whole(self) -> bool:
        """Whether the chunk is one tile: writes are then relative to the chunk's beginning."""
        return self.tile == self.reads.shape[2]


def choose_tile(g: Tensor) -> int:
    """The largest tile in which every channel of g [N, C, K] decays by at most BOUND."""
    C = g.shape[1]
    if g.device.type != "cpu":
        return 1  # looking at the numbers would wait for the device
    tile, total = 2, g.unflatten(1, (-1, 2)).sum(2)
    worst = {2: total.amin().item()}
    while tile < C:
        tile *= 2
        total = total.unflatten(1, (-1, 2)).sum(2)
        worst[tile] = total.amin().item()
    return max((tile for tile, least in worst.items() if -least <= BOUND), default=1)


def apply(q: Tensor, k: Tensor, w: Tensor, g: Tensor, tile: int) -> Tiles:
    """Apply decays to N chunks.

    Args:
        q, k, w: [N, C, K], queries, keys, and what is written.
        g: [N, C, K], logarithms of the decays, at most 0.
        tile: tokens that one product serves, C divided by a power of 2.
    """
    N, C, K = k.shape
    decay = (blocks(g, tile).cumsum(2).exp_() if tile > 1 else g.exp()).view(N, C, K)
    reads = torch.empty(N, 2, C, K, dtype=g.dtype, device=g.device)
    torch.mul(k, decay, out=reads[:, 0])
    torch.mul(q, decay, out=reads[:, 1])
    left = decay[:, tile - 1 :: tile]
    if tile == C:
        writes = w / decay
        seen = torch.bmm(reads.view(N, 2 * C, K), writes.transpose(1, 2)).view(N, 2, C, C)
        return Tiles(tile, reads, writes, left[:, 0], keep_earlier(seen), decay, [])
    seen = torch.zeros(N, 2, C, C, dtype=g.dtype, device=g.device)
    if tile == 1:
        writes = w.clone()
        seen[:, 1].diagonal(0, 1, 2).copy_((q * w).sum(-1))
    else:
        writes = w / decay
        inside = torch.bmm(_rows(blocks(reads, tile)), writes.view(-1, tile, K).transpose(1, 2))
        inside = keep_earlier(inside.view(-1, 2, tile, tile))
        _on_diagonal(seen, tile).copy_(inside.view(N, -1, 2, tile, tile))
        blocks(writes, tile).mul_(left[:, :, None])
    levels = []
    h = tile
    while h < C:
        reading, writing = _halves(reads, h)[1], _halves(writes, h)[0]  # (N, 2, C/2h, h, K), (N, C/2h, h, K)
        # Copies: what is kept must not take up the decays below.
        columns = writing.clone(memory_format=torch.contiguous_format).view(-1, h, K)
        level = Level(_rows(reading), columns, left[:, ::2], left[:, 1::2])
        across = torch.bmm(level.rows, level.columns.transpose(1, 2))  # (N * C/2h, 2 * h, h)
        _on_diagonal(seen, 2 * h)[..., h:, :h].copy_(across.view(N, -1, 2, h, h))
        reading.mul_(level.first[:, None, :, None])
        writing.mul_(level.second[:, :, None])
        left = level.first * level.second
        levels.append(level)
        h *= 2
    return Tiles(tile, reads, writes, left[:, 0], seen, decay, levels)


def backward(
    tiles: Tiles, q: Tensor, k: Tensor, w: Tensor, reads: Tensor, writes: Tensor, left: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, w and g, [N, C, K] each.

    Args:
        tiles: what `apply` returned for these q, k and w.
        reads, writes, seen: gradients of the fields of these names; all are used up.
        left: gradient of the logarithm of the field `left` by what is left of the state, [N, K].
    """
    N, C, K = k.shape
    tile, decay = tiles.tile, tiles.decay
    # A query sees what its own token wrote without any decay: put aside, so that nothing is left of it to cancel in g.
    own = seen[:, 1].diagonal(0, 1, 2).clone()[..., None]  # (N, C, 1)
    seen[:, 1].diagonal(0, 1, 2).zero_()
    logs = left[:, None]
    for level in reversed(tiles.levels):
        h = level.columns.shape[1]
        across = _on_diagonal(seen, 2 * h)[..., h:, :h].reshape(-1, 2 * h, h)
        reading, writing = _halves(reads, h)[1].transpose(1, 2), _halves(writes, h)[0]
        reading.mul_(level.first[:, :, None, None])
        writing.mul_(level.second[:, :, None])
        by_first = (reading * level.rows.view(N, -1, 2, h, K)).sum((2, 3))
        by_second = (writing * level.columns.view(N, -1, h, K)).sum(2)
        logs = torch.stack([logs + by_first, logs + by_second], 2).flatten(1, 2)
        reading += torch.bmm(across, level.columns).view(N, -1, 2, h, K)
        writing += torch.bmm(across.transpose(1, 2), level.rows).view(N, -1, h, K)
    if tile == 1:
        reads *= decay[:, None]
        dk, dq = reads.unbind(1)
        dg = (dk * k).addcmul_(dq, q)
    else:
        inside, rows, relative = seen.view(N, 2 * C, C), tiles.reads.view(N, 2 * C, K), tiles.writes
        if tile < C:
            inside = _on_diagonal(seen, tile).reshape(-1, 2 * tile, tile)
            rows = _rows(blocks(torch.stack([k * decay, q * decay], 1), tile))
            relative = w / decay
            blocks(writes, tile).mul_(decay[:, tile - 1 :: tile, None])
        # What is written passes the decays behind it, whether inside the tile or on its way out. Taking the sum over
        # the latter for what it is, not as a difference, leaves nothing behind a tile's last token by rounding.
        passing = writes * relative
        found = torch.bmm(inside, relative.view(-1, tile, K)).view(N, -1, 2, tile, K)
        blocks(reads, tile).add_(found.transpose(1, 2))
        within = torch.bmm(inside.transpose(1, 2), rows).view(N, C, K)
        reads *= decay[:, None]
        dk, dq = reads.unbind(1)
        dg = (dk * k).addcmul_(dq, q).addcmul_(within, relative, value=-1)
        ones, each = torch.ones(tile, tile, dtype=dg.dtype, device=dg.device), (N * C // tile, -1, -1)
        dg = torch.bmm(ones.triu().expand(each), dg.view(-1, tile, K))
        dg = dg.baddbmm_(ones.tril(-1).expand(each), passing.view(-1, tile, K)).view(N, C, K)
        writes = writes.add_(within).div_(decay)
    blocks(dg, tile).add_(logs[:, :, None])
    return dq.addcmul(own, w), dk, writes.addcmul_(own, q), dg


def blocks(x: Tensor, size: int) -> Tensor:
    """[..., C, K] as [..., C/size, size, K]."""
    tiled: Tensor = x.unflatten(-2, (-1, size))
    return tiled


def _halves(x: Tensor, h: int) -> tuple[Tensor, Tensor]:
    """First and second halves of blocks of 2h, [..., C/2h, h, K] each, as views."""
    pairs = x.unflatten(-2, (-1, 2, h))
    return pairs[..., 0, :, :], pairs[..., 1, :, :]


def _rows(x: Tensor) -> Tensor:
    """A copy of [N, 2, blocks, h, K] as [N * blocks, 2h, K]: the keys of a block, then its queries."""
    return x.transpose(1, 2).clone(memory_format=torch.contiguous_format).view(-1, 2 * x.shape[3], x.shape[4])


def _on_diagonal(seen: Tensor, size: int) -> Tensor:
    """The blocks [N, C/size, 2, size, size] on the diagonal of [N, 2, C, C], as a view."""
    tiled: Tensor = seen.unflatten(3, (-1, size)).unflatten(2, (-1, size))
    return tiled.diagonal(0, 2, 4).permute(0, 4, 1, 2, 3)


def keep_earlier(seen: Tensor) -> Tensor:
    """Zero, in place, what keys see from their own token on, and queries behind it."""
    seen[:, 0].tril_(-1)
    seen[:, 1].tril_()
    return seen
