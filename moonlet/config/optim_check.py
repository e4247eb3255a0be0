"""What cannot be among a recipe's optimizer, schedule and expert balance, each said in one line."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from moonlet.config.published import PUBLISHED

if TYPE_CHECKING:
    from moonlet.config.sections import OptimSettings, TrainSettings


def check_optimizer(o: OptimSettings) -> None:
    """Refuse what no optimizer can work with."""
    ranges = (
        ("lr", o.lr, 0 < o.lr < math.inf, "be above 0 and finite"),
        ("weight_decay", o.weight_decay, 0 <= o.weight_decay < math.inf, "be at least 0 and finite"),
        ("momentum", o.momentum, 0 <= o.momentum < 1, "lie in 0..1, 1 excluded"),
        ("ns_steps", o.ns_steps, o.ns_steps >= 1, "be at least 1"),
        ("betas", list(o.betas), all(0 <= beta < 1 for beta in o.betas), "lie in 0..1, 1 excluded"),
        ("eps", o.eps, o.eps > 0, "be above 0"),
    )
    for name, value, good, rule in ranges:
        if not good:
            raise ValueError(f"optim.{name} is {value}; it must {rule}")
    if o.qk_clip_tau is not None and not 0 < o.qk_clip_tau < math.inf:
        raise ValueError(f"optim.qk_clip_tau is {o.qk_clip_tau}; it must be above 0 (optim.kind=muon has no clip)")


def check_schedule(o: OptimSettings, t: TrainSettings) -> None:
    """Refuse rates and times that no run can have, and schedules that need what the recipe does not give."""
    _at_least_zero("optim.warmup_steps", o.warmup_steps)
    if not 0 <= o.min_lr <= 1:
        raise ValueError(f"optim.min_lr is {o.min_lr}; it is a fraction of optim.lr and must lie in 0..1")
    if not 0 < o.decay_fraction <= 1:
        raise ValueError(
            f"optim.decay_fraction is {o.decay_fraction}; it must be larger than 0 and at most 1 "
            "(optim.schedule=constant never falls)"
        )
    if o.schedule in PUBLISHED and o.min_lr:
        raise ValueError(
            f"optim.min_lr is {o.min_lr}, but optim.schedule '{o.schedule}' ends where the published one does; "
            "leave optim.min_lr at 0"
        )
    if t.steps > 0:
        _check_length(o, t.steps)
    elif o.schedule in ("cosine", *PUBLISHED):
        raise ValueError(f"optim.schedule is '{o.schedule}', which needs train.steps; with train.minutes use 'wsd'")


def check_balance(o: OptimSettings, t: TrainSettings) -> None:
    """Refuse speeds and weights below zero, and a freeze that a time budget cannot place."""
    _at_least_zero("optim.bias_update_speed", o.bias_update_speed)
    _at_least_zero("optim.aux_loss_alpha", o.aux_loss_alpha)
    freeze = o.bias_freeze_fraction
    if not 0 <= freeze <= 1:
        raise ValueError(f"optim.bias_freeze_fraction is {freeze}; it must lie in 0..1")
    # A time budget turns into a number of steps where the rate begins to fall, and not before.
    known = o.decay_fraction if o.schedule == "wsd" else 0.0
    if t.steps <= 0 and freeze > known:
        raise ValueError(
            f"optim.bias_freeze_fraction is {freeze}; with train.minutes it can be at most {known}, the part of the "
            "run over which the rate falls; or give train.steps"
        )


def _check_length(o: OptimSettings, steps: int) -> None:
    """Warm-up and what follows it must fit into the run."""
    if o.schedule == "wsd":
        after, what = round(steps * o.decay_fraction), f" and the fall of optim.decay_fraction {o.decay_fraction}"
    elif o.schedule in PUBLISHED:
        first = PUBLISHED[o.schedule].phases[0].until
        after, what = steps - math.floor(steps * first), f" and what follows the first part of '{o.schedule}'"
    else:
        after, what = 0, ""
    if o.warmup_steps + after > steps:
        sum_ = f"{o.warmup_steps} + {after}" if after else f"{o.warmup_steps}"
        raise ValueError(
            f"optim.warmup_steps{what} take {sum_} steps, more than train.steps {steps}; lower optim.warmup_steps"
            + (" or optim.decay_fraction" if o.schedule == "wsd" else "")
        )


def _at_least_zero(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}; it must be at least 0, and finite")
