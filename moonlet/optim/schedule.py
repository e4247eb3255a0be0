"""Learning-rate schedules as functions of the step.

WSD (warmup, stable, decay; arXiv 2404.06395) holds the peak and falls only at the end, so that a run may be stopped,
prolonged, or given a time budget: where the fall starts can be decided while it runs. Cosine falls all the way.
"""

from __future__ import annotations

import math

from moonlet.config.recipe import OptimSettings


def learning_rate(settings: OptimSettings, step: int, total: int | None, decay_start: int | None) -> float:
    """The rate of step `step` (0-indexed).

    Args:
        total: steps of the whole run; None while a time budget has not fixed it yet.
        decay_start: first step of WSD's fall; None while it is not known.
    """
    peak, low = settings.lr, settings.lr * settings.min_lr
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant" or total is None:
        return peak
    if settings.schedule == "cosine":
        done = (step - settings.warmup_steps) / max(1, total - settings.warmup_steps)
        return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if decay_start is None or step < decay_start:
        return peak
    left = max(0.0, 1 - (step - decay_start + 1) / max(1, total - decay_start + 1))
    return low + (peak - low) * (left if settings.decay_shape == "linear" else 1 - math.sqrt(1 - left))


def decay_start(settings: OptimSettings, total: int) -> int:
    """The step at which WSD starts to fall in a run of `total` steps."""
    return max(settings.warmup_steps, total - round(total * settings.decay_fraction))
