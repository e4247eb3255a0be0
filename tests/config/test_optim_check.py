"""Schedules and balances that cannot be are refused in one line; those that can are not."""

from __future__ import annotations

import re

import pytest

from moonlet.config import Recipe, recipe_from_dict

MINUTES = ("train.steps=0", "train.minutes=2")


def read(*overrides: str) -> Recipe:
    return recipe_from_dict({"train": {"steps": 100}}, overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optim.schedule=step",), "optim.schedule is 'step'; valid: wsd, cosine, constant, k2, moonlight"),
        (("optim.decay_shape=sqrt",), "optim.decay_shape is 'sqrt'; valid: linear, 1-sqrt, cosine"),
        (("optim.balance=bias",), "optim.balance is 'bias'; valid: sign, zero-mean, off"),
        (("optim.decay_fraction=0",), "optim.decay_fraction is 0.0; it must be larger than 0 and at most 1"),
        (("optim.decay_fraction=1.2",), "optim.decay_fraction is 1.2"),
        (("optim.lr=-1e-3",), "optim.lr is -0.001; it must be above 0 and finite"),
        (("optim.lr=nan",), "optim.lr is nan"),
        (("optim.lr=inf",), "optim.lr is inf"),
        (("optim.min_lr=-0.1",), "optim.min_lr is -0.1; it is a fraction of optim.lr and must lie in 0..1"),
        (("optim.min_lr=2",), "optim.min_lr is 2.0"),
        (("optim.warmup_steps=-1",), "optim.warmup_steps is -1; it must be at least 0"),
        (("optim.bias_update_speed=-1",), "optim.bias_update_speed is -1.0; it must be at least 0"),
        (("optim.aux_loss_alpha=-1",), "optim.aux_loss_alpha is -1.0; it must be at least 0"),
        (("optim.bias_freeze_fraction=1.5",), "optim.bias_freeze_fraction is 1.5; it must lie in 0..1"),
        (
            ("optim.warmup_steps=70",),
            "optim.warmup_steps and the fall of optim.decay_fraction 0.4 take 70 + 40 steps, more than train.steps 100",
        ),
        (
            ("optim.schedule=cosine", "optim.warmup_steps=101"),
            "optim.warmup_steps take 101 steps, more than train.steps 100; lower optim.warmup_steps",
        ),
        (
            ("optim.schedule=k2", "optim.warmup_steps=70"),
            "optim.warmup_steps and what follows the first part of 'k2' take 70 + 38 steps, more than train.steps 100",
        ),
        (("optim.schedule=moonlight", "optim.warmup_steps=92"), "take 92 + 9 steps, more than train.steps 100"),
        (("optim.schedule=k2", "optim.min_lr=0.1"), "optim.min_lr is 0.1, but optim.schedule 'k2' ends where"),
        ((*MINUTES, "optim.schedule=k2"), "optim.schedule is 'k2', which needs train.steps; with train.minutes use"),
        ((*MINUTES, "optim.schedule=moonlight"), "optim.schedule is 'moonlight', which needs train.steps"),
        ((*MINUTES, "optim.schedule=cosine"), "optim.schedule is 'cosine', which needs train.steps"),
        ((*MINUTES, "optim.bias_freeze_fraction=0.5"), "with train.minutes it can be at most 0.4, the part of the run"),
        (
            (*MINUTES, "optim.schedule=constant", "optim.bias_freeze_fraction=0.1"),
            "with train.minutes it can be at most 0.0",
        ),
    ],
)
def test_what_cannot_be_is_one_line(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read(*overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ("optim.warmup_steps=60",),  # rise and fall fill the run exactly
        ("optim.decay_fraction=1", "optim.warmup_steps=0"),
        ("optim.schedule=constant", "optim.warmup_steps=100"),
        ("optim.schedule=k2", "optim.warmup_steps=60"),
        ("optim.schedule=moonlight", "optim.bias_freeze_fraction=0.088"),
        ("optim.balance=off", "optim.aux_loss_alpha=0.001"),
        (*MINUTES, "optim.bias_freeze_fraction=0.4"),
        (*MINUTES, "optim.warmup_steps=500", "optim.decay_shape=cosine"),
    ],
)
def test_what_can_be_is_not_refused(overrides: tuple[str, ...]) -> None:
    read(*overrides)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (10, 2), (99, 19), (100, 20), (5000, 20)])
def test_a_warmup_that_nobody_gave_fits_a_short_run(steps: int, warmup: int) -> None:
    assert read(f"train.steps={steps}").optim.warmup_steps == warmup
    if steps >= 10:
        assert read(f"train.steps={steps}", "optim.warmup_steps=6").optim.warmup_steps == 6


def test_a_warmup_that_nobody_gave_is_the_usual_one_with_a_time_budget() -> None:
    assert read(*MINUTES).optim.warmup_steps == 20
