"""`moonlet eval` on a run: all parts, the same figures twice, kept in eval.json, several runs in one table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moonlet.cli import job
from moonlet.cli.main import app
from moonlet.eval.report import Report, Request, evaluate_folder, save_report
from moonlet.eval.table import compare, describe
from tests.train import tiny

ALL = Request(questions=True, stories=1, samples=2, by_position=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps on the story world: it has learned nothing, and everything can be measured."""
    folder = tmp_path_factory.mktemp("eval")
    recipe = tiny.recipe(
        folder,
        "data.kind=story",
        "data.megabytes=0.3",
        "data.valid_stories=3",
        "train.steps=2",
        "train.seq_len=96",
        "optim.warmup_steps=1",
    )
    job.start(recipe, folder / "run", tiny.quiet())
    return folder / "run"


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return evaluate_folder(run, ALL)


def test_equal_requests_give_equal_figures(run: Path, report: Report) -> None:
    assert evaluate_folder(run, ALL).to_dict() == report.to_dict()
    other = evaluate_folder(run, replace(ALL, seed=1))
    assert report.told is not None
    assert other.told is not None
    assert other.told.texts != report.told.texts
    assert other.bits == report.bits


def test_every_part_is_there_and_printed(report: Report) -> None:
    assert report.told is not None
    assert report.told.consistency is not None
    assert report.told.reference.copied_longest is not None  # of the run's own training text
    text = describe(report)
    for part in (
        "bits per byte",
        "entropy floor",
        "by blind guess",
        "consistent",
        "distinct-4",
        "longest copy",
        "33-64",
    ):
        assert part in text, text
    json.dumps(report.to_dict(), allow_nan=False)


def test_eval_json_keeps_what_was_measured_on_the_same_weights(run: Path, report: Report) -> None:
    file = save_report(report, run)
    assert file == run / "eval.json"
    written = file.read_bytes()
    save_report(evaluate_folder(run), run)
    assert file.read_bytes() == written
    save_report(replace(evaluate_folder(run), weights="checkpoints/step-00000009"), run)
    assert "questions" not in json.loads(file.read_text())
    assert save_report(report, run / "model") is None
    file.write_text("{ torn")
    save_report(report, run)
    assert file.read_bytes() == written


def test_several_runs_stand_side_by_side(report: Report) -> None:
    other = replace(report, model="other", questions=None)
    table = compare([report, other])
    head, *lines = table.split("\n")
    assert head.split() == [report.model, "other"]
    chosen = next(line for line in lines if line.startswith("answers chosen"))
    assert chosen.split()[-1] == "-"
    assert "Not measured on one text" not in table
    assert "Not measured on one text" in compare([report, replace(other, text="tales.txt")])
    assert "answers" not in compare([other, other])


def test_a_lossy_tokenizer_is_said_to_be_one(report: Report) -> None:
    lossy = replace(report, lossless=False)
    assert "not comparable" in describe(lossy).replace("\n", " ")
    assert "(lossy)" in compare([report, lossy])
    assert "lossy" not in compare([report, report])


def test_the_verb_prints_compares_and_writes(run: Path, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("Tom had a hat.\n<|endoftext|>\nMia had a cat.\n")
    figures, picture = tmp_path / "f.json", tmp_path / "p.png"
    one = CliRunner().invoke(
        app, ["eval", str(run), "--data", str(text), "--packed", "--plot", str(picture), "--context", "8"]
    )
    assert one.exit_code == 0, one.output
    assert "positions, packed" in one.output
    assert picture.is_file()
    many = CliRunner().invoke(app, ["eval", str(run), str(run / "model"), "--data", str(text), "--json", str(figures)])
    assert many.exit_code == 0, many.output
    found = json.loads(figures.read_text())
    assert list(found) == [str(run), str(run / "model")]
    first, second = (found[name]["text"]["bits_per_byte"] for name in found)
    assert first == second
    assert "tales" not in found
    assert json.loads((run / "eval.json").read_text())["packed"]["context"] == 8


def test_impossible_requests_are_one_line(run: Path) -> None:
    for arguments, message in (
        ([run / "model"], "no run folder"),
        ([run, "--data", run / "missing.txt"], "missing.txt"),
        ([run, "--limit", "3"], "--lm-eval"),
        ([run, "--context", "9999"], "9999"),
    ):
        done = CliRunner().invoke(app, ["eval", *map(str, arguments)])
        assert isinstance(done.exception, (ValueError, OSError))
        assert message in str(done.exception)
