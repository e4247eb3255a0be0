"""The plain reference of the sampler: one step, rows with equal settings, one filter after another."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from moonlet.generate.sample import (
    NOT_FINITE,
    SamplingParams,
    draw,
    greedy,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    scale_temperature,
)


def warp(logits: Tensor, params: SamplingParams, seen: Tensor | None = None) -> Tensor:
    """What of the filters `params` asks for, without bias and counts. logits fp32 [B, V]; seen bool [B, V]."""
    if params.repetition_penalty != 1.0:
        assert seen is not None, "the repetition penalty needs the tokens seen"
        logits = penalize_repetition(logits, seen, params.repetition_penalty)
    if params.greedy:
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
    """Draw the next token of each row, all with the same settings; bias, counts and log-probabilities left out.

    Args:
        logits: [B, V], any float dtype.
        params: shared by the rows.
        uniform: one number in [0, 1) a row; not used when greedy.
        seen: bool [B, V], tokens each row holds; needed for a repetition penalty other than 1.

    Raises:
        ValueError: a row holds NaN or infinity, or nothing that can be drawn.
    """
    logits = warp(logits.float(), params, seen)
    drawn = greedy(logits) if params.greedy else draw(logits, uniform)
    tokens = [token for token in drawn if token is not None]
    if len(tokens) < len(drawn):
        raise ValueError(NOT_FINITE)
    return tokens
