"""From logits to a token: repetition penalty, temperature, top-k, top-p, min-p, then one draw.

Each is a pure function on fp32 logits [B, V] and means what it means in transformers, in transformers' order; a token
that is filtered out gets -inf. The draw inverts the cumulative distribution at one uniform number a row,

    token = min { v : sum_{i <= v} p_i > u sum_i p_i }

so a row's randomness is that number alone: see `RandomStream`.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_NO_TOKEN = float("-inf")


@dataclass(frozen=True)
class SamplingParams:
    """How one text is continued."""

    max_new_tokens: int = 256
    """Tokens to draw at most, at least 1."""
    temperature: float = 0.8
    """What logits are divided by; 0 takes the likeliest token each time (greedy)."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest likeliest tokens whose probabilities reach this sum, in (0, 1]; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the likeliest, in [0, 1]; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Divides the positive and multiplies the negative logits of tokens seen before, prompt included; above 0."""
    seed: int | None = None
    """Equal seeds give equal texts; None draws a fresh one for each call."""
    stop: tuple[str, ...] = ()
    """Texts that end the continuation and are not part of it."""
    unknown: bool = False
    """Whether the tokenizer's unknown token may be drawn; it is no text, only a sign that the vocabulary lacks one."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "top_k", "seed"):
            value = getattr(self, name)
            if not (isinstance(value, int) and not isinstance(value, bool)) and not (name == "seed" and value is None):
                raise ValueError(f"{name} is {value!r}; it must be a whole number")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}; it must be a finite number")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be at least 0, and 0 is greedy")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1, or 0 to keep all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie above 0 and up to 1, and 1 keeps all tokens")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; it must lie in 0..1, and 0 keeps all tokens")
        if self.repetition_penalty <= 0:
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}; it must be above 0, and 1 changes nothing"
            )
        stop: object = self.stop  # callers without a type checker give a single text, which would count as letters
        if isinstance(stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop is {self.stop!r}; it must be a sequence of texts that are not empty")
        object.__setattr__(self, "stop", tuple(self.stop))


class RandomStream:
    """The uniform numbers of one text, decided by seed, prompt and repeat alone.

    Neither the place in a batch nor its neighbours enter, so a prompt draws the same alone and in company; of equal
    prompts in one call each has its own `repeat` (0, 1, 2, ...) and so its own numbers.
    """

    def __init__(self, seed: int, prompt: Sequence[int], repeat: int) -> None:
        digest = hashlib.sha256(f"{seed}:{repeat}:{','.join(map(str, prompt))}".encode()).digest()
        # Python promises that random() gives the same numbers for the same seed in every version.
        self._random = random.Random(int.from_bytes(digest, "little"))

    def uniform(self) -> float:
        """The next number, in [0, 1)."""
        return self._random.random()


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens seen before less likely (arXiv 1909.05858). logits [B, V], seen bool [B, V] -> [B, V]"""
    penalized = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, penalized, logits)


def scale_temperature(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature, [B, V] -> [B, V]; temperature above 0."""
    return logits / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep each row's k largest logits, and what ties with the last of them. [B, V] -> [B, V]"""
    smallest = logits.topk(min(k, logits.shape[-1]), -1).values[:, -1:]
    return logits.masked_fill(logits < smallest, _NO_TOKEN)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens whose probabilities sum to p (arXiv 1904.09751), at least one. [B, V]"""
    ascending, order = logits.sort(-1)
    # Summed from the unlikely end: what has at most 1 - p below and including it goes.
    drop = ascending.softmax(-1).cumsum(-1) <= 1 - p
    drop[:, -1] = False
    return logits.masked_fill(drop.scatter(1, order, drop), _NO_TOKEN)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens at least p times as likely as the likeliest (arXiv 2407.01082). [B, V] -> [B, V]"""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), _NO_TOKEN)


def warp(logits: Tensor, params: SamplingParams, seen: Tensor | None = None) -> Tensor:
    """All of the above that `params` asks for, in order. logits fp32 [B, V]; seen bool [B, V], for the penalty."""
    if params.repetition_penalty != 1.0:
        assert seen is not None, "the repetition penalty needs the tokens seen"
        logits = penalize_repetition(logits, seen, params.repetition_penalty)
    if params.temperature == 0:
        return logits
    if params.temperature != 1.0:
        logits = scale_temperature(logits, params.temperature)
    if params.top_k:
        logits = keep_top_k(logits, params.top_k)
    if params.top_p < 1.0:
        logits = keep_top_p(logits, params.top_p)
    if params.min_p > 0.0:
        logits = keep_min_p(logits, params.min_p)
    return logits


def sample(logits: Tensor, params: SamplingParams, uniform: Sequence[float], seen: Tensor | None = None) -> list[int]:
    """Draw the next token of each row.

    Args:
        logits: [B, V], any float dtype.
        params: shared by the rows.
        uniform: one number in [0, 1) a row; not used when greedy.
        seen: bool [B, V], tokens each row holds; needed for a repetition penalty other than 1.

    Raises:
        ValueError: a row holds NaN or infinity, or nothing that can be drawn.
    """
    logits = logits.float()
    if not all(math.isfinite(largest) for largest in logits.amax(-1).tolist()):
        raise ValueError(
            "the model's logits are not finite, so no token can be drawn; its weights are damaged or its training "
            "diverged: use an earlier checkpoint"
        )
    logits = warp(logits, params, seen)
    if params.temperature == 0:
        greedy: list[int] = logits.argmax(-1).tolist()
        return greedy
    # Summed in fp64: in fp32 the tail of a large vocabulary would be lost in rounding.
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)  # (B, V)
    target = torch.tensor(uniform, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    drawn: list[int] = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=logits.shape[1] - 1).tolist()
    return drawn
