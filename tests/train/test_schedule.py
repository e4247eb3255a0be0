"""Schedules by their defining points."""

from __future__ import annotations

import itertools

import pytest

from moonlet.config.recipe import OptimSettings
from moonlet.optim.schedule import decay_start, learning_rate


def rates(total: int, **settings: object) -> list[float]:
    s = OptimSettings(lr=1.0, warmup_steps=10, **settings)  # type: ignore[arg-type]
    return [learning_rate(s, i, total, decay_start(s, total)) for i in range(total)]


def test_warmup_rises_in_equal_parts_to_the_peak() -> None:
    assert rates(100)[:10] == pytest.approx([0.1 * i for i in range(1, 11)])


@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
def test_wsd_holds_the_peak_then_falls_to_the_minimum(shape: str) -> None:
    r = rates(100, schedule="wsd", decay_fraction=0.4, decay_shape=shape, min_lr=0.1)
    assert r[10:60] == [1.0] * 50
    assert all(a > b for a, b in itertools.pairwise(r[59:]))
    assert 0.1 < r[-1] < 0.13


def test_one_minus_sqrt_falls_faster_at_first() -> None:
    assert rates(100, decay_shape="1-sqrt")[65] < rates(100, decay_shape="linear")[65]


def test_cosine_is_half_way_down_in_the_middle() -> None:
    r = rates(110, schedule="cosine")
    assert r[60] == pytest.approx(0.5)
    assert r[-1] < 0.01


def test_a_run_whose_end_is_unknown_stays_at_the_peak() -> None:
    assert learning_rate(OptimSettings(lr=1.0, warmup_steps=2), 50, None, None) == 1.0
