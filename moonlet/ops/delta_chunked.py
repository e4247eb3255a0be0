"""The gated delta rule in chunks: matrix products instead of a step a token.

With x, w and `seen` of `delta_tiles` (what keys and queries read, what is written, how much of it is seen), S the state
before a chunk and V its values [C, V]:

    E = (I + seen_k)^-1 (V - x_k S)        what each value adds to what its key recalls: all corrections solved at once
    O = scale (x_q S + seen_q E)
    S <- left S + w^T E

(arXiv 2510.26692, section 3.) Some chunks at a time make a segment, so that what lies in between stays in cache. Saved
for backward are the inputs and the state before every segment; the rest is computed again, a segment at a time.

B batch, T time, H heads, K key width, V value width, C chunk, n chunks of a segment, N = n B H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moonlet.ops import delta_tiles
from moonlet.ops.dispatch import register

TILE = 16
# Numbers of one [tokens, H, K] array of a segment: what a segment needs, about 20 of them, stays near the caches.
_SEGMENT = {"cpu": 1 << 17, "cuda": 1 << 24}


@register("delta_rule", "chunked")
def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float,
    state: Tensor | None = None,
    documents: Tensor | None = None,
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """As `ops.delta.delta_rule` says; chunk is a multiple of 16 by a power of 2. Computes in g's dtype."""
    if chunk < TILE or chunk % TILE or (chunk // TILE) & (chunk // TILE - 1):
        raise ValueError(f"delta rule: a chunk of {chunk} tokens; it must be {TILE}, or {TILE} doubled some times")
    B, T, H, K = q.shape
    if state is None:
        state = g.new_zeros(B, H, K, v.shape[-1])
    if T == 0:
        return v.new_zeros(v.shape), state.to(g.dtype).clone()
    inputs = (q, k, v, g, beta, state.to(g.dtype))
    segments = None if documents is None else _numbered(documents)
    chunk = min(chunk, TILE << max(0, (-(-T // TILE) - 1).bit_length()))
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return _Chunked.apply(*inputs, segments, scale, chunk)  # type: ignore[no-any-return, no-untyped-call]
    o, last, _ = _forward(*inputs, segments, scale, chunk, keep=False)
    return o, last


def _numbered(documents: Tensor) -> Tensor:
    """Documents [B, T] numbered along the row, so that one that comes again is another."""
    changes = torch.zeros_like(documents)
    changes[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return changes.cumsum(1)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        state: Tensor,
        segments: Tensor | None,
        scale: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        o, last, before = _forward(q, k, v, g, beta, state, segments, scale, chunk, keep=True)
        ctx.save_for_backward(q, k, v, g, beta, segments, *before)
        ctx.scale, ctx.chunk = scale, chunk
        return o, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_o: Tensor, d_state: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, g, beta, segments, *before = ctx.saved_tensors
        grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, g, beta)]
        dS = d_state.contiguous().flatten(0, 1)
        span = _span(q, ctx.chunk)
        for number, S in reversed(list(enumerate(before))):
            part = slice(number * span, min((number + 1) * span, q.shape[1]))
            segment = _Segment(q, k, v, g, beta, segments, part, ctx.chunk)
            dS = segment.backward(S, d_o[:, part], dS, ctx.scale, [x[:, part] for x in grads])
        return *grads, dS.view(d_state.shape), None, None, None


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    segments: Tensor | None,
    scale: float,
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The output, the last state, and, to keep, the states before each segment."""
    T = q.shape[1]
    o = torch.empty(v.shape, dtype=q.dtype, device=q.device)
    S, before = state.flatten(0, 1), []
    span = _span(q, chunk)
    for begin in range(0, T, span):
        part = slice(begin, min(begin + span, T))
        if keep:
            before.append(S)
        S = _Segment(q, k, v, g, beta, segments, part, chunk).forward(S, scale, o[:, part])
    # A state that no chunk changed would be the caller's own.
    return o, S.view(state.shape), before


def segment_tokens(batch: int, heads: int, width: int, device: torch.device, chunk: int = 32) -> int:
    """Tokens of a segment, before each of which a state is kept for backward; of `batch` texts at once."""
    return max(1, _SEGMENT.get(device.type, 1 << 24) // (batch * heads * width * chunk)) * chunk


def _span(q: Tensor, chunk: int) -> int:
    B, T, H, K = q.shape
    return min(segment_tokens(B, H, K, q.device, chunk), -(-T // chunk) * chunk)


class _Masks:
    """Which document a token belongs to, seen from its chunk; 1 keeps, 0 drops.

    Products with them are exact: what they meet is finite, whichever document it comes from.
    """

    def __init__(self, segments: Tensor, part: slice, chunk: int, dtype: torch.dtype) -> None:
        own = segments[:, part]
        before = segments[:, max(part.start - 1, 0), None]
        if own.shape[1] % chunk:
            own = torch.cat([own, own[:, -1:].expand(-1, -own.shape[1] % chunk)], 1)
        own = own.unflatten(1, (-1, chunk)).transpose(0, 1)[:, :, None]  # (n, B, 1, C)
        last = own[..., -1:]  # (n, B, 1, 1)
        before = torch.cat([before[None, :, None], last[:-1]])
        # Pairs of tokens of one document, for keys and for queries.
        self.same = (own[..., :, None] == own[..., None, :])[:, :, :, None].to(dtype)  # (n, B, 1, 1, C, C)
        # Tokens that read the state before the chunk, and those that leave something behind it.
        self.reads = (own == before)[:, :, :, None, :, None].to(dtype)  # (n, B, 1, 1, C, 1)
        self.leaves = (own == last)[..., None].to(dtype)  # (n, B, 1, C, 1)
        # Chunks behind which something is left of the state before them.
        self.lasts = (before == last)[..., None].to(dtype)  # (n, B, 1, 1, 1)


class _Segment:
    """Some chunks, ready for the loop over states. Axes n, B and H are one, N, where a state has no part in it."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, segments: Tensor | None, part: slice, chunk: int
    ) -> None:
        self.tokens, self.chunk, self.dtype = part.stop - part.start, chunk, g.dtype
        self.n, self.B, self.H = -(-self.tokens // chunk), q.shape[0], q.shape[2]
        self.q, self.k, self.v, g, self.beta = (self._load(x[:, part]) for x in (q, k, v, g, beta[..., None]))
        self.w = self.k * self.beta
        self.tiles = delta_tiles.apply(self.q, self.k, self.w, g, delta_tiles.choose_tile(g))
        seen, reads, writes, left = self.tiles.seen, self.tiles.reads, self.tiles.writes, self.tiles.left
        self.masks = None if segments is None else _Masks(segments, part, chunk, g.dtype)
        if self.masks:
            self._by_batch(seen).mul_(self.masks.same)
            reads = self._by_batch(reads) * self.masks.reads
            writes = self._by_batch(writes) * self.masks.leaves
        # What the loop takes chunk by chunk.
        self.reads = self._by_chunk(reads.view(-1, 2 * chunk, g.shape[2]))  # (n, BH, 2C, K)
        self.writes = self._by_chunk(writes.view(-1, chunk, g.shape[2]))  # (n, BH, C, K)
        self.left = self._by_chunk(left)[..., None]  # (n, BH, K, 1)
        identity = torch.eye(chunk, dtype=g.dtype, device=g.device).expand(len(seen), -1, -1)
        solve = torch.linalg.solve_triangular(seen[:, 0], identity, upper=False, unitriangular=True)
        self.solve = self._by_chunk(solve)  # (n, BH, C, C), (I + seen_k)^-1

    def _load(self, x: Tensor) -> Tensor:
        """[B, tokens, H, W] as [N, C, W], zeros behind the last token."""
        if x.shape[1] % self.chunk:
            x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % self.chunk))
        x = x.unflatten(1, (self.n, self.chunk)).permute(1, 0, 3, 2, 4)  # (n, B, H, C, W)
        out = torch.empty(x.shape, dtype=self.dtype, device=x.device)
        return out.copy_(x).flatten(0, 2)

    def _store(self, x: Tensor, out: Tensor) -> None:
        """[N, C, W] into [B, tokens, H, W]."""
        x = self._by_batch(x).permute(1, 0, 3, 2, 4)  # (B, n, C, H, W)
        if self.tokens % self.chunk:
            out.copy_(x.flatten(1, 2)[:, : self.tokens])
        else:
            out.unflatten(1, (self.n, self.chunk)).copy_(x)

    def _by_batch(self, x: Tensor) -> Tensor:
        return x.view(self.n, self.B, self.H, *x.shape[1:])

    def _by_chunk(self, x: Tensor) -> Tensor:
        return x.view(self.n, self.B * self.H, *x.shape[1:])

    def _run(self, S: Tensor) -> tuple[Tensor, Tensor]:
        """The loop: states before each chunk and after the last, [n + 1, BH, K, V], and E [n, BH, C, V]."""
        states = S.new_empty(self.n + 1, *S.shape)
        states[0] = S
        values = self._by_chunk(self.v)
        E = torch.empty_like(values)
        # Lists: indexing a tensor in the loop costs as much as a small product.
        state, keys, writes = states.unbind(), self.reads[:, :, : self.chunk].unbind(), self.writes.mT.unbind()
        rows = zip(keys, writes, self.solve.unbind(), self.left.unbind(), values.unbind(), E.unbind(), strict=True)
        for i, (x, w, solve, left, value, found) in enumerate(rows):
            torch.bmm(solve, torch.baddbmm(value, x, state[i], alpha=-1), out=found)
            kept = self._kept(state[i], i)
            if self.tiles.whole:
                torch.baddbmm(kept, w, found, out=state[i + 1]).mul_(left)
            else:
                torch.mul(kept, left, out=state[i + 1]).baddbmm_(w, found)
        return states, E

    def _kept(self, S: Tensor, i: int) -> Tensor:
        """A state [BH, K, V] without the rows whose document ends in chunk i."""
        if self.masks is None:
            return S
        kept: Tensor = S.view(self.B, self.H, *S.shape[1:]) * self.masks.lasts[i]
        return kept.flatten(0, 1)

    def forward(self, S: Tensor, scale: float, out: Tensor) -> Tensor:
        """Write the output [B, tokens, H, V] into out; returns the state after the segment, [BH, K, V]."""
        C = self.chunk
        states, E = self._run(S)
        o = torch.bmm(self.reads[:, :, C:].flatten(0, 1), states[:-1].flatten(0, 1))
        o = torch.baddbmm(o, self.tiles.seen[:, 1], E.flatten(0, 1), beta=scale, alpha=scale)
        self._store(o, out)
        return states[-1].clone()

    def backward(self, S: Tensor, d_o: Tensor, dS: Tensor, scale: float, out: list[Tensor]) -> Tensor:
        """Gradients.

        Args:
            S: state before the segment, [BH, K, V].
            d_o: of the segment's output, [B, tokens, H, V].
            dS: of the state after it, [BH, K, V].
            out: where those of q, k, v, g and beta go.

        Returns:
            That of the state before the segment.
        """
        C = self.chunk
        states, E = self._run(S)
        N, V = len(self.q), E.shape[-1]
        # Gradients of what is read: by keys of V - x_k S with its sign turned, by queries of the output.
        read = S.new_empty(self.n, len(S), 2 * C, V)
        by_kind = read.view(N, 2, C, V)
        torch.mul(self._load(d_o), scale, out=by_kind[:, 1])
        dE = self._by_chunk(torch.bmm(self.tiles.seen[:, 1].transpose(1, 2), by_kind[:, 1]))
        behind = torch.empty_like(states[1:])  # gradients of the states after each chunk
        written = torch.empty_like(behind) if self.tiles.whole else behind  # of w^T E
        behind[-1] = dS
        wrong = read[:, :, :C].unbind()
        rows = list(
            zip(
                self.reads.mT.unbind(),
                self.writes.unbind(),
                self.solve.mT.unbind(),
                self.left.unbind(),
                dE.unbind(),
                read.unbind(),
                behind.unbind(),
                written.unbind(),
                strict=True,
            )
        )
        for i in reversed(range(self.n)):
            x, w, solve, left, d_found, d_read, after, d_written = rows[i]
            scaled = torch.mul(after, left, out=d_written if self.tiles.whole else None)
            torch.neg(torch.bmm(solve, d_found.baddbmm_(w, d_written)), out=wrong[i])
            dS = torch.baddbmm(self._kept(scaled, i), x, d_read)
            if i:
                behind[i - 1] = dS
        logs = self._surviving(states[:-1] * behind)
        read, states, E = read.view(N, 2 * C, V), states[:-1].flatten(0, 1), E.flatten(0, 1)
        seen = delta_tiles.keep_earlier(torch.bmm(read, E.transpose(1, 2)).view(N, 2, C, C))
        reads = torch.bmm(read, states.transpose(1, 2)).view(N, 2, C, -1)
        writes = torch.bmm(E, written.flatten(0, 1).transpose(1, 2))
        if self.masks:
            self._by_batch(seen).mul_(self.masks.same)
            self._by_batch(reads).mul_(self.masks.reads)
            self._by_batch(writes).mul_(self.masks.leaves)
        dv = by_kind[:, 0].neg()
        dq, dk, dw, dg = delta_tiles.backward(
            self.tiles, self.q, self.k, self.w, reads, writes, logs.flatten(0, 1), seen
        )
        d_beta = (dw * self.k).sum(-1, keepdim=True)
        dk.addcmul_(dw, self.beta)
        for grad, place in zip((dq, dk, dv, dg, d_beta), (*out[:4], out[4][..., None]), strict=True):
            self._store(grad, place)
        return dS

    def _surviving(self, x: Tensor) -> Tensor:
        """States times their gradients [n, BH, K, V] as gradients of the logarithm of what is left of them."""
        found = (x.sum(-1) * self.left[..., 0]).view(self.n, self.B, self.H, -1)
        if self.masks is not None:
            found *= self.masks.lasts[..., 0]
        return found.flatten(1, 2)
