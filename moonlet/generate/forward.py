"""Taking tokens into a paged cache: all texts in one native call where that runs, else one text after another.

Either way a text's logits are, to the bit, what they are alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moonlet.generate.decoding import new_step
from moonlet.generate.live import Live
from moonlet.generate.native_step import NativeStep
from moonlet.generate.reading import Reading, not_training
from moonlet.model.model import CausalLM
from moonlet.model.paged_cache import PagedCache

Portion = tuple[Live, int]
"""A text, and how many of its tokens to take in."""


class Forward:
    """A model and its paged cache."""

    def __init__(self, model: CausalLM, cache: PagedCache) -> None:
        self._model, self._cache = model, cache
        self._step = new_step(model)

    def reading(self, length: int) -> Reading:
        """How a prompt of so many tokens is read."""
        native = isinstance(self._step, NativeStep) and self._step.reads(length)
        return Reading(length, not native, self._cache.block)

    def order(self, portions: Sequence[Portion]) -> list[Portion]:
        """Those that share the native call first."""
        return sorted(portions, key=lambda portion: self._alone(portion[0]))

    def __call__(self, portions: Sequence[Portion]) -> Tensor:
        """Take tokens in.

        Args:
            portions: as `order` leaves them.

        Returns:
            Logits of those texts of which nothing remains then, fp32 [texts, vocab_size].
        """
        together = [portion for portion in portions if not self._alone(portion[0])]
        logits = [self._native(together)] if together else []
        if len(together) < len(portions):  # walking through the model's modules takes longer than drawing a token
            with not_training(self._model):
                logits += [self._one(text, count) for text, count in portions[len(together) :]]
        some = [rows for rows in logits if len(rows)]
        if len(some) == 1:
            return some[0]
        return torch.cat(some) if some else torch.empty(0, self._model.config.vocab_size)

    def _alone(self, text: Live) -> bool:
        return not isinstance(self._step, NativeStep) or (text.reading.by_model and text.is_reading)

    def _native(self, portions: Sequence[Portion]) -> Tensor:
        assert isinstance(self._step, NativeStep)
        tokens: list[int] = []
        positions: list[int] = []
        texts: list[int] = []
        wanted = []
        for text, count in portions:
            at, end = text.length, text.length + count
            tokens += text.tokens[at:end]
            positions += range(at, end)
            texts += [text.slot] * count
            if end == len(text.tokens):
                wanted.append(len(tokens) - 1)
        return self._step.feed(tokens, positions, texts, wanted, self._cache)

    def _one(self, text: Live, count: int) -> Tensor:
        first, last = text.length, text.length + count
        cache = self._cache.contiguous(text.slot, first, count)
        tokens = torch.tensor(text.tokens[first:last], device=self._model.device)
        logits = torch.empty(0, self._model.config.vocab_size)
        if not text.is_reading:
            logits = self._step(tokens, cache).float()
        elif last < len(text.tokens):
            self._model.hidden(tokens[None], cache)
        else:
            logits = self._model.last_logits(tokens[None], cache).float()
        self._cache.put_back(cache, text.slot, first, last)
        return logits
