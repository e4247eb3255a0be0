"""A decode step whose shapes are the same at every step: a token for each text that a paged cache has room for.

Texts that do not decode now are computed with the others: they write to the cache's scratch block, their states stay,
and nobody reads their logits. What is attended to is bounded by the longest text, rounded up to a power of two of
pieces of positions, so that there are few shapes and each can be prepared once:

    plain       operations as they are written; on a CPU without the texts that rest, which nothing needs there
    compiled    what stands between attention's reads is fused (torch.compile), once for each kind of layer
    graph       on CUDA, besides: the whole step is recorded for each number of pieces, and played with one call

Every step of a cache is the same arithmetic, whoever is in it, so a row's bits can depend on its neighbours only
through its place among them. A matrix library computes all rows of a product alike if they are a multiple of its
tiles' rows; so rows are filled up to a multiple of eight, and the step tries itself once, with equal rows everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.generate import static_layers
from moonlet.model.cache import DeltaCache, KeyValueCache, LatentCache
from moonlet.model.kda import KDA
from moonlet.model.layer import Layer
from moonlet.model.model import CausalLM
from moonlet.model.paged_cache import PagedCache
from moonlet.model.rope import Rope, Rotation

_ROWS = 8  # tiles of matrix products, in rows: a multiple of it, and each row has the same bits
_PIECE = 128  # positions attended to together


@dataclass(frozen=True)
class Pieces:
    """The parts of a layer that may be compiled."""

    queries: Callable[..., tuple[Tensor, Tensor]] = static_layers.queries
    attended: Callable[..., Tensor] = static_layers.attended
    recur: Callable[..., Tensor] = static_layers.recur
    channels: Callable[..., Tensor] = static_layers.channels


_PLAIN = Pieces()


class StaticStep:
    """A model's decode step over one cache; both must stay where they are.

    Args:
        backend: torch.compile's, to compile with it and, on CUDA, to record; None: neither.
    """

    def __init__(self, model: CausalLM, cache: PagedCache, backend: str | None = None) -> None:
        self._model, self._cache = model, cache
        self._device, texts = model.device, len(cache.tables)
        a_piece = max(1, _PIECE // cache.block)
        self._piece = a_piece * cache.block
        self._most = _power_of_two(-(-cache.tables.shape[1] // a_piece))
        self._table_host = torch.full((texts, self._most * a_piece), cache.scratch)
        self._table = self._table_host.to(self._device)
        self._given = torch.zeros(3, _filled(texts), dtype=torch.int64, device=self._device)
        self._slots: slice | Tensor = slice(0, texts)  # which text each row of the table is
        self._leaves_out = backend is None and self._device.type == "cpu"
        self._turns = None if model._rope is None else _all_turns(model._rope, self._most * self._piece, self._device)
        self._layers = [layer for layer in model.model.layers if isinstance(layer, Layer)]
        self._pieces = _PLAIN if backend is None else _compiled(backend)
        self._recorded: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] | None = None
        if backend is not None and self._device.type == "cuda":
            self._recorded = {}
            self._pool = torch.cuda.graph_pool_handle()

    @torch.inference_mode()
    def __call__(self, tokens: Sequence[int], positions: Sequence[int], texts: Sequence[int]) -> Tensor:
        """Take in a token of each of some texts.

        Args:
            tokens: in the vocabulary.
            positions: where each stands in its text; the blocks for it are in the cache's tables.
            texts: rows of the cache, each once.

        Returns:
            fp32 [texts, vocab_size], on the model's device.
        """
        n = _power_of_two(-(-(max(positions) + 1) // self._piece))
        self.prepare(n)
        self._place(tokens, positions, texts)
        if self._recorded is None:
            logits = self._run(n)
        else:
            graph, logits = self._recorded[n]
            graph.replay()
        return logits if self._leaves_out else logits[torch.tensor(texts, device=self._device)]

    @torch.inference_mode()
    def treats_rows_alike(self) -> bool:
        """Whether equal rows have equal bits in every place; for a cache that holds nothing yet."""
        texts = range(len(self._cache.tables))
        # Several tokens, as each shows some of a table's rounding; each is the first of its text, in the scratch block.
        alike = True
        for token in range(min(4, self._model.config.vocab_size)):
            self._place([token] * len(texts), [0] * len(texts), texts, scratch=True)
            logits = self._run(1)
            alike = alike and bool((logits == logits[:1]).all())
        for layer in self._cache.layers:
            if isinstance(layer, DeltaCache):
                layer.state.zero_()
                layer.inputs.zero_()
        return alike

    def _place(
        self, tokens: Sequence[int], positions: Sequence[int], texts: Sequence[int], scratch: bool = False
    ) -> None:
        """Write what the next run reads."""
        own, rows = list(texts), list(range(len(texts)) if self._leaves_out else texts)
        T = len(rows) if self._leaves_out else len(self._cache.tables)
        given = torch.zeros(3, _filled(T), dtype=torch.int64)
        table = torch.full((T, self._table_host.shape[1]), self._cache.scratch)
        if rows:
            given[:, rows] = torch.tensor([list(tokens), list(positions), [1] * len(rows)])
            if not scratch:
                table[rows, : self._cache.tables.shape[1]] = self._cache.tables[own]
        if self._leaves_out:
            follow = own == list(range(own[0], own[0] + T))
            self._slots = slice(own[0], own[0] + T) if follow else torch.tensor(own)
            self._given, self._table = given, table
            return
        self._given.copy_(given)
        if not torch.equal(table, self._table_host):
            self._table_host = table
            self._table.copy_(table)

    def _run(self, n: int) -> Tensor:
        """The step, attending to n pieces. -> fp32 [T, vocab_size], of the texts that have a row"""
        model, cache, pieces = self._model, self._cache, self._pieces
        tokens, positions, live = self._given
        T = len(self._table)
        live, at, tables = live[:T] != 0, positions[:T], self._table[:, : n * self._piece // cache.block]
        turn: Rotation | None = None
        if self._turns is not None:
            turn = self._turns[0][positions][:, None], self._turns[1][positions][:, None]  # (R, 1, P/2)
        x = F.embedding(tokens, model.model.embed_tokens.weight).to(model.dtype)  # (R, D)
        for layer, memory in zip(self._layers, cache.layers, strict=True):
            mix = layer.self_attn
            if isinstance(memory, DeltaCache):
                state, inputs = memory.state[self._slots], memory.inputs[self._slots]
                x = pieces.recur(layer, x, state, inputs, live)
                if isinstance(self._slots, Tensor):  # a copy, where a slice gives a view
                    memory.state[self._slots], memory.inputs[self._slots] = state, inputs
            else:
                assert isinstance(memory, LatentCache | KeyValueCache)
                assert not isinstance(mix, KDA)
                q, new = pieces.queries(layer, x, turn)
                u = static_layers.attend(mix, memory, q, new, tables, at, self._piece)
                x = pieces.attended(layer, x, u)
            x = pieces.channels(layer, x)
        return model.lm_head(model.model.norm(x)).float()[:T]  # type: ignore[no-any-return]

    @torch.inference_mode()
    def prepare(self, n: int) -> None:
        """Record the step of n pieces, where steps are recorded and this one is not yet.

        All texts rest meanwhile, so the cache stays as it is.
        """
        if self._recorded is None or n in self._recorded:
            return
        self._place([], [], [])
        beside, now = torch.cuda.Stream(self._device), torch.cuda.current_stream(self._device)
        beside.wait_stream(now)
        with torch.cuda.stream(beside):
            for _ in range(3):  # what is only done once, such as compiling, must not be recorded
                self._run(n)
        now.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._run(n)
        self._recorded[n] = graph, logits


def _compiled(backend: str) -> Pieces:
    options: dict[str, Any] = {"dynamic": False, "fullgraph": True, "backend": backend}
    return Pieces(
        torch.compile(_PLAIN.queries, **options),
        torch.compile(_PLAIN.attended, **options),
        torch.compile(_PLAIN.recur, **options),
        torch.compile(_PLAIN.channels, **options),
    )


def _all_turns(rope: Rope, length: int, device: torch.device) -> Rotation:
    """Cosines and sines [length, P/2] of each position as it is when the text reaches it."""
    plain = length if rope.reaches(length) else rope.trained
    cos, sin = rope(0, plain, device)
    if plain < length:
        more = rope(torch.arange(plain, length), 1, device)
        cos, sin = torch.cat((cos, more[0][:, 0])), torch.cat((sin, more[1][:, 0]))
    return cos, sin


def _filled(texts: int) -> int:
    """Rows that so many texts are filled up to."""
    return -(-texts // _ROWS) * _ROWS


def _power_of_two(n: int) -> int:
    """The least that is not less than n."""
    return 1 << (n - 1).bit_length()
