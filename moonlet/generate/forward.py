"""Taking tokens into a paged cache, together where that leaves a text's logits to the bit what they are alone.

native    any tokens of any texts in one call, on a CPU with a C++ compiler
static    one token of each text that decodes, in one step whose shapes never change; the model reads prompts
by row    one text after another: where the library's products treat a row by its place
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moonlet.generate.live import Live
from moonlet.generate.native_step import NativeStep
from moonlet.generate.paged_step import Compile, new_paged_step
from moonlet.generate.reading import Reading, not_training
from moonlet.generate.static_step import StaticStep
from moonlet.generate.step import Step
from moonlet.model.model import CausalLM
from moonlet.model.paged_cache import PagedCache

Portion = tuple[Live, int]
"""A text, and how many of its tokens to take in."""


class Forward:
    """A model and its paged cache, which holds nothing yet.

    Raises:
        ValueError: `compile` is "on" and this machine cannot.
    """

    def __init__(self, model: CausalLM, cache: PagedCache, compile: Compile = "auto") -> None:
        self._model, self._cache = model, cache
        self._step, self.told = new_paged_step(model, cache, compile)
        """`told`: a line on what could not be had; empty where nothing is to be said."""

    def reading(self, length: int) -> Reading:
        """How a prompt of so many tokens is read."""
        native = isinstance(self._step, NativeStep) and self._step.reads(length)
        return Reading(length, not native, self._cache.block)

    def order(self, portions: Sequence[Portion]) -> list[Portion]:
        """Those that share a call first."""
        return sorted(portions, key=lambda portion: self._alone(portion[0]))

    def __call__(self, portions: Sequence[Portion]) -> Tensor:
        """Take tokens in.

        Args:
            portions: as `order` leaves them.

        Returns:
            Logits of those texts of which nothing remains then, fp32 [texts, vocab_size].
        """
        together = [portion for portion in portions if not self._alone(portion[0])]
        logits = []
        if together and isinstance(self._step, NativeStep):
            logits = [self._native(self._step, together)]
        elif together:
            assert isinstance(self._step, StaticStep)
            known = [(text.tokens[text.length], text.length, text.slot) for text, _ in together]
            logits = [self._step(*map(list, zip(*known, strict=True)))]
        if len(together) == len(portions):  # walking through the model's modules takes longer than drawing a token
            return logits[0]
        with not_training(self._model):
            logits += [self._one(text, count) for text, count in portions[len(together) :]]
        some = [rows for rows in logits if len(rows)]
        if len(some) == 1:
            return some[0]
        return torch.cat(some) if some else torch.empty(0, self._model.config.vocab_size)

    def _alone(self, text: Live) -> bool:
        return isinstance(self._step, Step) or (text.reading.by_model and text.is_reading)

    def _native(self, step: NativeStep, portions: Sequence[Portion]) -> Tensor:
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
        return step.feed(tokens, positions, texts, wanted, self._cache)

    def _one(self, text: Live, count: int) -> Tensor:
        first, last = text.length, text.length + count
        cache = self._cache.contiguous(text.slot, first, count)
        tokens = torch.tensor(text.tokens[first:last], device=self._model.device)
        logits = torch.empty(0, self._model.config.vocab_size)
        if not text.is_reading:
            assert isinstance(self._step, Step)
            logits = self._step(tokens, cache).float()
        elif last < len(text.tokens):
            self._model.hidden(tokens[None], cache)
        else:
            logits = self._model.last_logits(tokens[None], cache).float()
        self._cache.put_back(cache, text.slot, first, last)
        return logits
