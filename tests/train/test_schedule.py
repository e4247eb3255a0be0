"""Schedules by their defining points."""

from __future__ import annotations

import itertools

import pytest

from moonlet.config.sections import OptimSettings
from moonlet.optim.schedule import decay_start, learning_rate, warmup_steps


def rates(total: int, **settings: object) -> list[float]:
    s = OptimSettings(lr=1.0, warmup_steps=10, **settings)  # type: ignore[arg-type]
    return [learning_rate(s, i, total, decay_start(s, total)) for i in range(total)]


def test_warmup_rises_in_equal_parts_to_the_peak() -> None:
    assert rates(100)[:10] == pytest.approx([0.1 * i for i in range(1, 11)])


@pytest.mark.parametrize("shape", ["linear", "1-sqrt", "cosine"])
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


def test_a_cosine_fall_is_slow_at_first_and_half_way_down_in_its_middle() -> None:
    r = rates(100, decay_shape="cosine")
    assert r[65] > rates(100, decay_shape="linear")[65]
    assert r[59 + 20] == pytest.approx(0.5, abs=0.03)


# The published runs at full length, in steps of their batch of 67M (K2) and 33.5M tokens (Moonlight). Position in
# tokens -> learning rate.
K2 = {0.04e12: 2e-4, 9.99e12: 2e-4, 10e12: 2e-4, 12.75e12: 1.1e-4, 15.5e12: 2e-5, 15.73e12: 1.35e-5, 15.96e12: 7e-6}
MOONLIGHT = {
    0.033e12: 4.2e-4, (5.2e12 + 0.033e12) / 2: 2.31e-4, 5.2e12: 4.2e-5,
    5.2e12 + 50 * 4096 * 8192: 7.1e-5, 5.2e12 + 100 * 4096 * 8192: 1e-4, 5.45167772e12: 5e-5, 5.7e12: 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "peak", "tokens", "batch", "points"),
    [("k2", 2e-4, 15.96e12, 67e6, K2), ("moonlight", 4.2e-4, 5.7e12, 4096 * 8192, MOONLIGHT)],
)
def test_a_published_schedule_at_full_length_has_the_published_rates(
    name: str, peak: float, tokens: float, batch: float, points: dict[float, float]
) -> None:
    total = round(tokens / batch)
    settings = OptimSettings(lr=peak, schedule=name)
    for position, rate in points.items():
        step = round(position / batch)
        assert learning_rate(settings, step, total, None) == pytest.approx(rate, rel=0.01, abs=1e-8), position
    assert warmup_steps(settings, total) == pytest.approx({"k2": 500, "moonlight": 984}[name], abs=1)


@pytest.mark.parametrize("name", ["k2", "moonlight"])
@pytest.mark.parametrize("total", [100, 1000, 50_000])
def test_a_published_schedule_has_the_same_shape_at_any_length(name: str, total: int) -> None:
    def run(total: int) -> list[float]:
        settings = OptimSettings(lr=1.0, schedule=name, warmup_steps=total // 100)
        return [learning_rate(settings, step, total, None) for step in range(total)]

    r, long = run(total), run(100_000)
    assert max(r) == 1.0
    for part in (0.05, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99):
        assert r[round(part * total)] == pytest.approx(long[round(part * 100_000)], abs=0.002)
    # No jumps at the joints. Moonlight climbs by a seventh of its peak within 100 of its 170k steps: in a short run,
    # within one.
    steepest = max(abs(a - b) for a, b in itertools.pairwise(r[total // 100 :]))
    assert steepest < (min(0.145, 250 / total) if name == "moonlight" else 6 / total)


def test_moonlight_falls_climbs_again_and_falls_to_nothing_and_k2_only_falls() -> None:
    moonlight = rates(10_000, schedule="moonlight")
    lowest = moonlight.index(min(moonlight[200:9500]))
    assert lowest == pytest.approx(10_000 * 5.2 / 5.7, abs=2)
    assert max(moonlight[lowest:]) == pytest.approx(1 / 4.2, abs=0.03)
    assert moonlight[-1] < 1e-3
    k2 = rates(10_000, schedule="k2")
    assert all(a >= b for a, b in itertools.pairwise(k2[22:]))
    assert k2[-1] == pytest.approx(0.035, abs=1e-3)


def test_a_short_run_keeps_the_warmup_it_was_given() -> None:
    assert rates(200, schedule="k2")[:10] == pytest.approx([0.1 * i for i in range(1, 11)])


def test_a_run_whose_end_is_unknown_stays_at_the_peak() -> None:
    assert learning_rate(OptimSettings(lr=1.0, warmup_steps=2), 50, None, None) == 1.0
