"""From logits to a token: bias, penalties, temperature, top-k, top-p, min-p, then one draw.

Each is a pure function on fp32 logits [B, V] and means what it means in transformers, in transformers' order; what
transformers lacks, the penalties on frequency and presence, comes behind its penalty and means what it means to OpenAI:

    logits_v - frequency_penalty n_v - presence_penalty [n_v > 0]        n_v: times v was generated

A token that is filtered out gets -inf. A setting is a number for all rows, or a column with one for each. The draw
inverts the cumulative distribution at one uniform number a row,

    token = min { v : sum_{i <= v} p_i > u sum_i p_i }

so a row's randomness is that number alone: see `RandomStream`. `sampler.py` keeps what one text needs for all this.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

MAX_LOGPROBS = 20
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
    """Divides the positive and multiplies the negative logits of tokens seen before, prompt included; in 1e-6..1e6."""
    seed: int | None = None
    """Equal seeds give equal texts; None draws a fresh one for each call."""
    stop: tuple[str, ...] = ()
    """Texts that end the continuation and are not part of it."""
    unknown: bool = False
    """Whether the tokenizer's unknown token may be drawn; it is no text, only a sign that the vocabulary lacks one."""
    frequency_penalty: float = 0.0
    """What a token's logit loses each time it was generated, in -2..2; the prompt does not count."""
    presence_penalty: float = 0.0
    """What a token's logit loses once it was generated at all, in -2..2; the prompt does not count."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """Token id -> what is added to its logit, in -100..100; -100 all but bans, 100 all but forces."""
    logprobs: int | None = None
    """How many of the likeliest tokens are told with each drawn one and their log-probabilities, in 0..20; None tells
    nothing. They are the model's own: before bias, penalties, temperature and truncation."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "top_k", "seed", "logprobs"):
            value = getattr(self, name)
            if not is_whole(value) and not (name in ("seed", "logprobs") and value is None):
                raise ValueError(f"{name} is {value!r}; it must be a whole number")
        for name in (
            "temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"
        ):  # fmt: skip
            value = getattr(self, name)
            if not _is_finite(value):
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
        if not 1e-6 <= self.repetition_penalty <= 1e6:
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}; it must lie in 1e-6..1e6, and 1 changes nothing"
            )
        for name in ("frequency_penalty", "presence_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in -2..2, and 0 changes nothing")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ValueError(f"logprobs is {self.logprobs}; it must lie in 0..{MAX_LOGPROBS}")
        stop: object = self.stop  # callers without a type checker give a single text, which would count as letters
        if isinstance(stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop is {self.stop!r}; it must be a sequence of texts that are not empty")
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken; so it is where a logit over the temperature would overflow, too."""
        return self.temperature < 1e-30


def is_whole(value: object) -> bool:
    """Whether `value` is a whole number, which True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    # A whole number may be too large for any float.
    return isinstance(value, int | float) and -1e300 < value < 1e300


def _checked_bias(bias: object) -> dict[int, float]:
    """A copy, which nobody else changes."""
    if not isinstance(bias, Mapping):
        raise ValueError(f"logit_bias is {bias!r}; it must map token ids to numbers in -100..100")
    for token, value in bias.items():
        if not is_whole(token) or token < 0:
            raise ValueError(f"logit_bias has the key {token!r}; keys must be token ids, whole numbers from 0")
        if not _is_finite(value) or not -100 <= value <= 100:
            raise ValueError(f"logit_bias[{token}] is {value!r}; it must be a number in -100..100")
    return dict(bias)


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


Setting = float | Tensor
"""A number, or one for each row as a column [B, 1]."""


def add_bias(logits: Tensor, tokens: Tensor, bias: Tensor) -> Tensor:
    """Add `bias` fp32 [n] to the logits of the distinct `tokens` int64 [n]. [B, V] -> [B, V]"""
    return logits.index_add(-1, tokens, bias.expand(*logits.shape[:-1], -1))


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens seen before less likely (arXiv 1909.05858). logits [B, V], seen bool [B, V] -> [B, V]"""
    penalized = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, penalized, logits)


def penalize_counts(logits: Tensor, counts: Tensor, frequency: float, presence: float) -> Tensor:
    """Make generated tokens less likely. logits fp32 [B, V], counts fp32 [B, V] -> [B, V]"""
    return logits - frequency * counts - presence * (counts > 0)


def scale_temperature(logits: Tensor, temperature: Setting) -> Tensor:
    """logits / temperature, [B, V] -> [B, V]; temperature above 0."""
    return logits / temperature


def keep_top_k(logits: Tensor, k: int | Tensor) -> Tensor:
    """Keep each row's k largest logits, and what ties with the last of them. k: or int64 [B, 1]. [B, V] -> [B, V]"""
    V = logits.shape[-1]
    if isinstance(k, int):
        smallest = logits.topk(min(k, V), -1).values[:, -1:]
    else:
        most = min(int(k.max()), V)
        smallest = logits.topk(most, -1).values.gather(-1, k.clamp(max=V) - 1)
    return logits.masked_fill(logits < smallest, _NO_TOKEN)


def keep_top_p(logits: Tensor, p: Setting) -> Tensor:
    """Keep the fewest likeliest tokens whose probabilities sum to p (arXiv 1904.09751), at least one. [B, V] -> [B, V]

    Of tokens equally likely the later ones are kept. A column is fp64, since 1 - p is rounded but once.
    """
    ascending = _ascending(logits)
    # Summed from the unlikely end: what has at most 1 - p below and including it goes.
    rest = 1 - p if isinstance(p, float) else (1 - p.double()).float()
    drop = ascending.softmax(-1).cumsum(-1) <= rest
    drop[:, -1] = False
    # Only values were sorted, which is far quicker than tokens: what is dropped lies below the least value kept, or
    # ties with it and comes first.
    dropped = drop.sum(-1, keepdim=True)  # (B, 1)
    least = ascending.gather(-1, dropped)
    below = logits < least
    ties = logits == least
    spare = dropped - below.sum(-1, keepdim=True)
    if bool((spare > 0).any()):
        below |= ties & (ties.cumsum(-1) <= spare)
    return logits.masked_fill(below, _NO_TOKEN)


def _ascending(logits: Tensor) -> Tensor:
    if logits.device.type != "cpu":
        return logits.sort(-1).values
    # NumPy sorts numbers without their places, some ten times as fast.
    return torch.from_numpy(np.sort(logits.numpy(), axis=-1))


def keep_min_p(logits: Tensor, p: Setting) -> Tensor:
    """Keep tokens at least p times as likely as the likeliest (arXiv 2407.01082). [B, V] -> [B, V]"""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), _NO_TOKEN)


def draw(logits: Tensor, uniform: Sequence[float]) -> list[int | None]:
    """Draw a token of each row from its softmax.

    Args:
        logits: fp32 [B, V].
        uniform: one number in [0, 1) a row.

    Returns:
        B tokens; None where a row holds NaN, infinity, or nothing but -inf.
    """
    # Summed in fp64: in fp32 the tail of a large vocabulary would be lost in rounding.
    cumulative = logits.softmax(-1).double().cumsum(-1)  # (B, V)
    target = torch.tensor(uniform, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    # On the way out NaN shows too: one transfer a step is enough.
    drawn = torch.searchsorted(cumulative, target, right=True).clamp_(max=logits.shape[1] - 1)
    tokens: list[float] = drawn.double().add_(cumulative[:, -1:] * 0)[:, 0].tolist()
    return [None if math.isnan(token) else int(token) for token in tokens]


def greedy(logits: Tensor) -> list[int | None]:
    """The likeliest token of each row, the first of those that tie; None as in `draw`. logits fp32 [B, V]"""
    largest: list[float] = logits.amax(-1).tolist()
    tokens: list[int] = logits.argmax(-1).tolist()
    return [token if math.isfinite(top) else None for token, top in zip(tokens, largest, strict=True)]


NOT_FINITE = (
    "the model's logits are not finite, so no token can be drawn; its weights are damaged or its training diverged: "
    "use an earlier checkpoint"
)
