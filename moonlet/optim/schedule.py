"""Learning-rate schedules as functions of the step.

WSD (warmup, stable, decay; arXiv 2404.06395) holds the peak and falls only at the end, so that a run may be stopped,
prolonged, or given a time budget: where the fall starts can be decided while it runs. Cosine falls all the way. The
schedules of Kimi K2 and Moonlight are chains of phases (`moonlet.config.published`) stretched over the run's length.
"""

from __future__ import annotations

import math

from moonlet.config.published import PUBLISHED, Schedule
from moonlet.config.sections import OptimSettings


def learning_rate(settings: OptimSettings, step: int, total: int | None, decay_start: int | None) -> float:
    """The rate of step `step` (0-indexed).

    Args:
        total: steps of the whole run; None while a time budget has not fixed it yet.
        decay_start: first step of WSD's fall; None while it is not known.
    """
    peak, low = settings.lr, settings.lr * settings.min_lr
    warmup = warmup_steps(settings, total)
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.schedule == "constant" or total is None:
        return peak
    if settings.schedule == "cosine":
        return _between(peak, low, (step - warmup) / max(1, total - warmup), "cosine")
    if settings.schedule in PUBLISHED:
        return peak * _published(PUBLISHED[settings.schedule], step / total, warmup / total)
    if decay_start is None or step < decay_start:
        return peak
    # Counted so that the fall begins with its first step and the run's last one still moves.
    return _between(peak, low, (step - decay_start + 1) / max(1, total - decay_start + 1), settings.decay_shape)


def warmup_steps(settings: OptimSettings, total: int | None) -> int:
    """Steps of the rise: `settings.warmup_steps`, and in a published schedule its own share of the run if longer."""
    if total is None or settings.schedule not in PUBLISHED:
        return settings.warmup_steps
    return max(settings.warmup_steps, round(total * PUBLISHED[settings.schedule].warmup))


def decay_start(settings: OptimSettings, total: int) -> int:
    """The step at which WSD starts to fall in a run of `total` steps."""
    return max(settings.warmup_steps, total - round(total * settings.decay_fraction))


def _published(schedule: Schedule, position: float, warm: float) -> float:
    """The rate at `position`, after the warm-up that ended at `warm`; all three are fractions, of peak and run."""
    begin, before = warm, 1.0
    for phase in schedule.phases:
        if position < phase.until:
            return _between(before, phase.rate, (position - begin) / (phase.until - begin), phase.shape)
        begin, before = phase.until, phase.rate
    return before


def _between(start: float, end: float, done: float, shape: str) -> float:
    """The way from `start` (`done` 0) to `end` (`done` 1, and after it)."""
    done = min(1.0, done)
    left = {"linear": 1 - done, "1-sqrt": 1 - math.sqrt(done), "cosine": 0.5 * (1 + math.cos(math.pi * done))}[shape]
    return end + (start - end) * left
