"""An engine with the interface of the batching engine, as plain as can be: every live row is computed by itself."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch

from moonlet.generate.decoding import new_step
from moonlet.generate.engine import _read
from moonlet.generate.request import Event, Likely, Request
from moonlet.generate.sampler import Drawn, Sampler
from moonlet.generate.text import TextStream
from moonlet.model.cache import Cache
from moonlet.model.model import CausalLM
from moonlet.text import Tokenizer


@dataclass(frozen=True)
class Stats:
    live: int
    waiting: int
    free_slots: int
    drawn: int


@dataclass
class Row:
    ticket: int
    request: Request
    sampler: Sampler
    text: TextStream
    cache: Cache | None = None
    new: list[int] = field(default_factory=list)


class PlainEngine:
    """One thread calls it."""

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, *, slots: int = 4) -> None:
        self._model, self._tokenizer, self._slots = model, tokenizer, slots
        self._step = new_step(model)
        self._waiting: deque[Row] = deque()
        self._live: list[Row] = []
        self._tickets = self._drawn = 0
        self.closed = False

    def submit(self, request: Request) -> int:
        room = self._model.config.context_limit
        if len(request.prompt) + request.params.max_new_tokens > room:
            raise ValueError(f"{len(request.prompt)} tokens and {request.params.max_new_tokens} new ones exceed {room}")
        self._tickets += 1
        sampler = Sampler(request, self._tokenizer, self._model.config.vocab_size)
        text = TextStream(self._tokenizer, request.params.stop, request.prompt)
        self._waiting.append(Row(self._tickets, request, sampler, text))
        return self._tickets

    def cancel(self, ticket: int) -> None:
        self._live = [row for row in self._live if row.ticket != ticket]
        self._waiting = deque(row for row in self._waiting if row.ticket != ticket)

    @property
    def idle(self) -> bool:
        return not (self._live or self._waiting)

    def step(self) -> list[Event]:
        while self._waiting and len(self._live) < self._slots:
            self._live.append(self._waiting.popleft())
        return [self._advance(row) for row in list(self._live)]

    def stats(self) -> Stats:
        return Stats(len(self._live), len(self._waiting), self._slots - len(self._live), self._drawn)

    def close(self) -> None:
        self.closed = True

    def _advance(self, row: Row) -> Event:
        logits = self._logits(row)
        drawn = row.sampler.draw(logits[0])
        token, self._drawn = drawn.token, self._drawn + 1
        if token in row.request.ends:
            return self._end(row, "stop", None, row.text.finish())
        row.new.append(token)
        piece = row.text.push(token)
        if row.text.stopped:
            return self._end(row, "stop", drawn, piece)
        if row.sampler.done:
            return self._end(row, "stop", drawn, piece + row.text.finish())
        if len(row.new) == row.request.params.max_new_tokens:
            piece += row.text.finish()
            return self._end(row, "stop" if row.text.stopped else "length", drawn, piece)
        return self._event(row, drawn, piece)

    @torch.inference_mode()
    def _logits(self, row: Row) -> torch.Tensor:
        if row.cache is None:
            row.cache = self._model.new_cache(1, len(row.request.prompt) + row.request.params.max_new_tokens)
            return _read(self._model, self._step, [list(row.request.prompt)], row.cache)
        return self._step(torch.tensor(row.new[-1:]), row.cache)

    def _end(self, row: Row, finish: Any, drawn: Drawn | None, piece: str) -> Event:
        self._live.remove(row)
        return self._event(row, drawn, piece, finish)

    def _event(self, row: Row, drawn: Drawn | None, piece: str, finish: Any = None) -> Event:
        if drawn is None:
            return Event(row.ticket, None, piece, finish=finish)
        told = None if drawn.logprob is None else Likely(drawn.token, drawn.logprob)
        return Event(row.ticket, drawn.token, piece, told, drawn.likely, finish)
