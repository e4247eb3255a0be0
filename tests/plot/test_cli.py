"""`moonlet plot`: where pictures and pages go, and what a person is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from moonlet.cli.plot import By, plot
from tests.plot.runs import add_model, make_run


def written(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix in (".png", ".html")}


def test_one_run_gets_its_pictures_and_page_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    plot([run.path])
    found = written(run.path)
    assert {"plots/loss.png", "plots/expert_load.png", "report.html"} <= found
    said = capsys.readouterr().out.splitlines()
    assert "no checkpoint yet" in said[0]
    assert {str(run.path / name) for name in found} == set(said[1:])  # every file, each on a line of its own


def test_one_run_elsewhere_with_a_prompt_and_without_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    add_model(run)
    plot([run.path], tmp_path / "out", "Once", False, By.time)
    assert "attention.png" in written(tmp_path / "out")
    assert "report.html" not in written(tmp_path / "out")
    assert written(run.path) == set()


def test_several_runs_are_compared_and_get_pages_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_run(tmp_path / name).path for name in ("x/run", "y/run")]
    monkeypatch.chdir(tmp_path)
    plot(runs)
    assert written(tmp_path) == {
        f"plots/{name}.png" for name in ("loss", "learning_rate", "gradient_norm", "tokens_per_second")
    }
    plot(runs, tmp_path / "out", html=True)
    assert {"x-run.html", "y-run.html", "loss.png"} <= written(tmp_path / "out")


def test_what_cannot_be_done_is_one_clear_error(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a").path, make_run(tmp_path / "b").path
    with pytest.raises(ValueError, match="2 runs are given"):
        plot([a, b], prompt="Once")
    with pytest.raises(ValueError, match="no checkpoint yet"):
        plot([a], prompt="Once")
    with pytest.raises(ValueError, match="more than once"):
        plot([a, a])
    with pytest.raises(FileNotFoundError, match="nowhere is not a run folder"):
        plot([tmp_path / "nowhere"])
