"""What a run records of its experts: loads now and then, the routers' entropy with each evaluation."""

from __future__ import annotations

import pytest

from moonlet.cli import job
from moonlet.train.metrics import read_metrics
from moonlet.train.run import Run
from tests.train import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("experts")
    return job.start(tiny.recipe(folder), folder / "run", tiny.quiet()).run


def test_loads_are_recorded_with_evaluations_every_tenth_line_and_at_the_end(run: Run) -> None:
    records = list(read_metrics(run.metrics_file, "experts"))
    assert [r["step"] for r in records] == [5, 10, 12]
    for record in records:
        assert record["layers"] == [1]
        assert [len(row) for row in record["load"]] == [4]
        assert sum(record["load"][0]) == pytest.approx(1, abs=1e-4)
        assert record["max_over_mean"][0] == pytest.approx(4 * max(record["load"][0]), abs=1e-3)
    worst = {r["step"]: r["load_max"] for r in read_metrics(run.metrics_file, "train")}
    assert records[0]["max_over_mean"][0] == pytest.approx(worst[5], abs=1e-3)


def test_the_counts_themselves_stay_out_of_the_line_of_a_step(run: Run) -> None:
    assert all("loads" not in r for r in read_metrics(run.metrics_file, "train"))


def test_router_entropy_is_recorded_with_each_evaluation(run: Run) -> None:
    records = list(read_metrics(run.metrics_file, "routers"))
    assert [r["step"] for r in records] == [5, 10, 12]
    assert all(r["layers"] == [1] and 0 < r["entropy"][0] <= 1.38630 for r in records)
