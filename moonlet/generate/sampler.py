"""What one text needs to draw its tokens, and one draw for all rows of a batch, whatever their settings.

    logits [V] -> the tokenizer's ids -> bias -> penalties -> grammar -> temperature -> top-k -> top-p -> min-p -> token
       |
       +-> log-probabilities: the model's own, log softmax over all V, so that they do not depend on the settings

Bias, penalties and grammar belong to a row and are applied to it alone; all else is computed for the rows together,
with a column of settings where they differ. Every step treats a row by itself, so what a row draws is to the bit the
same alone and in company. Ids beyond the tokenizer's vocabulary are never drawn or told, the unknown token is drawn
only where its settings allow.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from moonlet.generate import sample
from moonlet.generate.request import Likely, Request
from moonlet.generate.sample import RandomStream
from moonlet.text import Tokenizer


@dataclass(frozen=True)
class Drawn:
    """What one row drew.

    Attributes:
        token: the id; -1 where there is an error.
        logprob: its log-probability, where the settings' `logprobs` is not None.
        likely: the `logprobs` likeliest tokens, likeliest first.
        error: why nothing could be drawn, a line; the text cannot go on.
    """

    token: int
    logprob: float | None = None
    likely: tuple[Likely, ...] = ()
    error: str | None = None


class Sampler:
    """Draws the tokens of one request, and keeps what the next draw depends on.

    Args:
        vocab_size: logits of the model, at least the tokenizer's ids.

    Raises:
        ValueError: the bias names a token beyond the vocabulary.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.params = params = request.params
        self.width = min(tokenizer.vocab_size, vocab_size)
        self.hidden = None if params.unknown else tokenizer.unk_id
        beyond = [token for token in params.logit_bias if token >= self.width]
        if beyond:
            raise ValueError(f"logit_bias names token {beyond[0]}; the vocabulary is 0..{self.width - 1}")
        seed = secrets.randbits(63) if params.seed is None else params.seed
        self._random = RandomStream(seed, request.prompt, request.repeat)
        self._prompt = request.prompt
        self._ends, self._eos = request.ends, tokenizer.eos_id
        self._matcher = None if request.grammar is None else request.grammar.matcher()
        self._repetition = params.repetition_penalty != 1.0
        self._counting = params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        self._bias: tuple[Tensor, Tensor] | None = None
        self._seen: Tensor | None = None  # bool [width]
        self._counts: Tensor | None = None  # fp32 [width]
        self.simple = not (self._repetition or self._counting or params.logit_bias or self._matcher is not None)
        """Whether nothing is done to this row alone."""

    @property
    def done(self) -> bool:
        """Whether a grammar is fulfilled and lets nothing follow: the text ends here, without a token that says so."""
        return self._matcher is not None and self._matcher.done

    def draw(self, logits: Tensor) -> Drawn:
        """The next token.

        Args:
            logits: [vocab_size], any float dtype.

        Raises:
            ValueError: the logits are not finite, or the grammar cannot go on.
        """
        drawn = draw_all([self], logits[None])[0]
        if drawn.error is not None:
            raise ValueError(drawn.error)
        return drawn

    def uniform(self) -> float:
        """The number that decides the next draw."""
        return self._random.uniform()

    def edit(self, logits: Tensor) -> Tensor:
        """Bias, penalties and grammar. fp32 [width] -> [width]

        Raises:
            ValueError: the grammar lets nothing follow.
        """
        params = self.params
        if params.logit_bias:
            if self._bias is None:
                tokens, bias = zip(*params.logit_bias.items(), strict=True)
                self._bias = (
                    torch.tensor(tokens, device=logits.device),
                    torch.tensor(bias, dtype=torch.float32, device=logits.device),
                )
            logits = sample.add_bias(logits, *self._bias)
        if self._repetition:
            if self._seen is None:
                self._seen = torch.zeros(self.width, dtype=torch.bool, device=logits.device)
                self._seen[[token for token in self._prompt if token < self.width]] = True
            logits = sample.penalize_repetition(logits, self._seen, params.repetition_penalty)
        # What was not generated loses nothing, so before the first token there is nothing to do.
        if self._counts is not None:
            logits = sample.penalize_counts(logits, self._counts, params.frequency_penalty, params.presence_penalty)
        if self._matcher is not None:
            allowed = self._allowed()
            if allowed is not None:
                logits = logits.masked_fill(~allowed.to(logits.device), float("-inf"))
        return logits

    def take(self, token: int, device: torch.device) -> None:
        """The text goes on with `token`.

        Raises:
            ValueError: the grammar has become too large to go on.
        """
        if self._seen is not None:
            self._seen[token] = True
        if self._counting:
            if self._counts is None:
                self._counts = torch.zeros(self.width, device=device)
            self._counts[token] += 1
        if self._matcher is not None and token not in self._ends:
            self._matcher.take(token)

    def _allowed(self) -> Tensor | None:
        """bool [width]; None: everything. Where the grammar lets the text end, so does each of the request's ends."""
        assert self._matcher is not None
        bits = self._matcher.allowed()
        if bits is None:
            return None
        found = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[: self.width].astype(bool)
        allowed = np.zeros(self.width, bool)
        allowed[: len(found)] = found
        may_end = bool(allowed[self._eos])
        allowed[self._eos] = False
        if may_end:
            allowed[[end for end in self._ends if end < self.width]] = True
        if self.hidden is not None:
            allowed[self.hidden] = False
        if not allowed.any():
            raise ValueError("the grammar lets no token of the vocabulary follow; allow more, or let the text end")
        return torch.from_numpy(allowed)


@torch.inference_mode()
def draw_all(samplers: Sequence[Sampler], logits: Tensor) -> list[Drawn]:
    """The next token of each row; a row that cannot go on has an error, and the others draw as if it were not there.

    Args:
        samplers: B of them, of one tokenizer.
        logits: [B, vocab_size], any float dtype, left as it is.
    """
    assert len(samplers) == logits.shape[0]
    rows = logits[:, : samplers[0].width].float()
    rows, errors = _edited(_without_unknown(rows, samplers), samplers)
    tokens: list[int | None] = [None] * len(samplers)
    cold = [i for i, sampler in enumerate(samplers) if sampler.params.greedy and i not in errors]
    hot = [i for i, sampler in enumerate(samplers) if not sampler.params.greedy and i not in errors]
    if cold:
        for i, token in zip(cold, sample.greedy(_some(rows, cold)), strict=True):
            tokens[i] = token
    if hot:
        warped = _warped(_some(rows, hot), [samplers[i] for i in hot])
        uniform = [samplers[i].uniform() for i in hot]
        for i, token in zip(hot, sample.draw(warped, uniform), strict=True):
            tokens[i] = token
    return [
        Drawn(-1, error=errors.get(i, sample.NOT_FINITE)) if token is None else _told(samplers[i], token, logits[i])
        for i, token in enumerate(tokens)
    ]


def _without_unknown(rows: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    hiding = [i for i, sampler in enumerate(samplers) if sampler.hidden is not None]
    if not hiding:
        return rows
    unknown = samplers[hiding[0]].hidden
    assert unknown is not None
    if len(hiding) == len(samplers):
        return rows.index_fill(1, _column((unknown,), torch.int64, rows.device)[0], float("-inf"))
    rows = rows.clone()
    rows[hiding, unknown] = float("-inf")
    return rows


def _edited(rows: Tensor, samplers: Sequence[Sampler]) -> tuple[Tensor, dict[int, str]]:
    """Rows after what is done to each alone, and what went wrong with which."""
    errors: dict[int, str] = {}
    own = [i for i, sampler in enumerate(samplers) if not sampler.simple]
    if own:
        rows = rows.clone()
    for i in own:
        try:
            rows[i] = samplers[i].edit(rows[i])
        except ValueError as error:
            errors[i] = str(error)
    return rows, errors


def _warped(rows: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """Temperature, then top-k, top-p and min-p, with each row's own settings."""
    params = [sampler.params for sampler in samplers]
    V = rows.shape[1]
    rows = _where(rows, [p.temperature for p in params], 1.0, torch.float32, sample.scale_temperature)
    rows = _where(rows, [min(p.top_k, V) for p in params], 0, torch.int64, sample.keep_top_k)
    rows = _where(rows, [p.top_p for p in params], 1.0, torch.float64, sample.keep_top_p)
    return _where(rows, [p.min_p for p in params], 0.0, torch.float32, sample.keep_min_p)


def _where(
    rows: Tensor, values: Sequence[float], off: float, dtype: torch.dtype, change: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Change the rows whose value is not `off`."""
    on = [i for i, value in enumerate(values) if value != off]
    if not on:
        return rows
    column = _column(tuple(values[i] for i in on), dtype, rows.device)
    if len(on) == len(values):
        return change(rows, column)
    rows = rows.clone()
    rows[on] = change(rows[on], column)
    return rows


def _some(rows: Tensor, wanted: Sequence[int]) -> Tensor:
    return rows if len(wanted) == rows.shape[0] else rows[list(wanted)]


@lru_cache(maxsize=256)
def _column(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[B, 1]; the same rows come again at every step."""
    return torch.tensor(values, dtype=dtype, device=device)[:, None]


def _told(sampler: Sampler, token: int, logits: Tensor) -> Drawn:
    """What one row's draw has to say of itself. logits [vocab_size], as the model gave them."""
    try:
        sampler.take(token, logits.device)
    except ValueError as error:
        return Drawn(-1, error=str(error))
    count = sampler.params.logprobs
    if count is None:
        return Drawn(token)
    log_p = logits.float().log_softmax(-1)
    likely: tuple[Likely, ...] = ()
    if count:
        best = log_p[: sampler.width].topk(min(count, sampler.width))
        pairs = sorted(zip(best.values.tolist(), best.indices.tolist(), strict=True), key=lambda p: (-p[0], p[1]))
        likely = tuple(Likely(index, value) for value, index in pairs)
    return Drawn(token, float(log_p[token]), likely)
