"""The alarm for collapsed experts: when it is raised, when not, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from moonlet.cli import job
from moonlet.config.sections import OptimSettings
from moonlet.optim.balance import balance_step, routers_of
from moonlet.train import alarm
from moonlet.train.alarm import PATIENCE, Collapse, collapses
from moonlet.train.metrics import read_metrics
from moonlet.train.run import Run
from moonlet.train.state import Progress
from tests.train import tiny

EVEN = [100] * 8
CROWDED = [380, 370, 10, 10, 10, 10, 5, 5]  # 400 tokens of two experts each, 95% of them to the first
DYING = [200, 300, 300, 0, 0, 0, 0, 0]


def raised(*steps: list[int], active: int = 2) -> list[int]:
    """The steps (0-indexed) at which a single router raises the alarm."""
    counters: list[int] = []
    return [i for i, row in enumerate(steps) if collapses(counters, [row], active)]


@pytest.mark.parametrize("row", [CROWDED, DYING])
def test_it_is_raised_once_an_occurrence_and_anew_after_a_recovery(row: list[int]) -> None:
    assert raised(*[row] * (PATIENCE - 1)) == []
    assert raised(*[row] * 100) == [PATIENCE - 1]
    assert raised(*[row] * 15, EVEN, *[row] * 15) == []
    assert raised(*[row] * 30, EVEN, *[row] * 30) == [PATIENCE - 1, 30 + PATIENCE]


@pytest.mark.parametrize(
    ("row", "active"),
    [
        (EVEN, 2),
        ([360, 62, 63, 63, 63, 63, 63, 63], 2),  # 90% exactly
        ([200, 200, 200, 200, 0, 0, 0, 0], 2),  # half of them exactly
        ([3, 1, 0, 0, 0, 0, 0, 0], 2),  # two tokens: most experts get none by chance
        ([0] * 8, 2),
        ([100, 100, 100, 60], 3),  # most of four: some experts are everybody's in the best of orders
        ([100, 100], 2),
    ],
)
def test_it_is_not_raised(row: list[int], active: int) -> None:
    assert raised(*[row] * 50, active=active) == []


def test_layers_are_watched_apart_and_what_was_counted_survives_a_checkpoint() -> None:
    progress = Progress()
    for _ in range(PATIENCE - 1):
        assert collapses(progress.collapsed, [EVEN, CROWDED], 2) == []
    later = Progress(collapsed=list(progress.collapsed))
    (found,) = collapses(later.collapsed, [EVEN, CROWDED], 2)
    assert found == Collapse(1, 0.95, 0.25, 0, 8)


def test_it_names_layer_numbers_and_the_way_out_in_one_line() -> None:
    text = Collapse(0, 0.952, 0.25, 5, 8).describe(3, OptimSettings(bias_update_speed=1e-4))
    assert "layer 3" in text
    assert "5 of 8" in text
    assert "95% of the tokens (even: 25%)" in text
    assert "raise optim.bias_update_speed (now 0.0001)" in text
    assert "\n" not in text
    off = Collapse(0, 0.952, 0.25, 5, 8).describe(3, OptimSettings(balance="off"))
    assert "set optim.balance=sign" in off
    assert "bias_update_speed" not in off


def test_a_run_whose_router_collapses_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The bias of two experts is set so high that no score can overtake it.
    from moonlet.train import step

    def collapsed(model, speed, zero_mean):  # type: ignore[no-untyped-def]
        said = balance_step(model, 0.0)
        routers_of(model)[0].e_score_correction_bias[:2] = 5.0
        return said

    monkeypatch.setattr(step, "balance_step", collapsed)
    monkeypatch.setattr(alarm, "PATIENCE", 4)
    told: list[str] = []
    monkeypatch.setattr("moonlet.cli.progress.Display.note", lambda self, text: told.append(text))
    job.start(tiny.recipe(tmp_path), tmp_path / "run", tiny.quiet())
    (record,) = read_metrics(Run.open(tmp_path / "run").metrics_file, "alarm")
    # Three steps of warm-up, then four in a row.
    assert (record["step"], record["layer"], record["crowd"]) == (7, 1, 1.0)
    assert [text for text in told if "collapsed" in text] == [f"step 7: {record['text']}"]
