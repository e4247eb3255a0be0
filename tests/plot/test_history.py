"""A run's metrics as columns: axes, names, and curves made thin without losing their spikes."""

from __future__ import annotations

from pathlib import Path

import pytest

from moonlet.plot.history import names_of, read_history, thin
from moonlet.train.metrics import Metrics
from tests.plot.runs import make_run


def test_axes_count_steps_tokens_and_seconds(tmp_path: Path) -> None:
    history = read_history(make_run(tmp_path / "a").path)
    assert history.at([10, 60], "step") == [10, 60]
    assert history.at([10, 60], "tokens") == [80, 480]  # 2 sequences of 4 tokens a step
    assert history.at([10, 60], "time") == pytest.approx([20, 120])  # at 4 tokens a second
    assert history.seconds == pytest.approx(120)


def test_time_covers_the_steps_that_were_not_logged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", steps=2)
    metrics = Metrics(run.metrics_file)
    metrics.write("train", 12, loss=3.0, lr=1e-3, tokens_per_s=8.0)
    metrics.close()
    history = read_history(run.path)
    assert history.at([2, 7, 12], "time") == pytest.approx([4, 9, 14])


def test_a_loss_that_is_not_finite_is_no_point_of_a_curve(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", steps=3)
    metrics = Metrics(run.metrics_file)
    metrics.write("train", 4, loss=float("nan"), lr=1e-3, grad_norm=float("inf"), tokens_per_s=4.0)
    metrics.close()
    assert read_history(run.path).columns("loss")[0] == [1, 2, 3]


def test_thinning_keeps_ends_order_and_every_spike() -> None:
    xs, ys = list(range(10_000)), [0.0] * 10_000
    ys[4321], ys[7654] = 9.0, -9.0
    few, values = thin(xs, ys, 200)
    assert len(few) <= 210
    assert few == sorted(few)
    assert (few[0], few[-1]) == (0, 9999)
    assert {4321, 7654} <= set(few)
    assert (max(values), min(values)) == (9.0, -9.0)
    assert thin([1, 2], [3.0, 4.0], 200) == ([1, 2], [3.0, 4.0])


def test_runs_are_told_apart_by_as_much_of_their_path_as_it_takes(tmp_path: Path) -> None:
    runs = [read_history(make_run(tmp_path / name).path) for name in ("x/run", "y/run", "y/other")]
    assert names_of(runs) == ["x/run", "y/run", "y/other"]
    assert names_of(runs[1:]) == ["run", "other"]
    with pytest.raises(ValueError, match="more than once"):
        names_of([runs[0], runs[0]])


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        read_history(tmp_path)
    with pytest.raises(ValueError, match=r"1 training steps.*at least 2"):
        read_history(make_run(tmp_path / "new", steps=1).path)
