"""`moonlet data`: text goes in, shards come out, and the help has examples."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from moonlet.cli.bytebar import ByteBar
from moonlet.cli.data import app
from moonlet.data import StoryCorpus, open_dataset
from moonlet.data.corpus import read_documents, write_documents
from moonlet.text import train_bpe

runner = CliRunner()


def test_prepare_and_show(tmp_path: Path) -> None:
    texts = [f"Tale {i} of a [bold]fox[/bold]." for i in range(30)]
    write_documents(texts, tmp_path / "t.txt")
    train_bpe(texts, 280).save(tmp_path / "k")
    for tokenizer, folder in ((str(tmp_path / "k"), tmp_path / "bpe"), ("byte", tmp_path / "byte")):
        command = ["prepare", str(tmp_path / "t.txt"), "--tokenizer", tokenizer, "--out", str(folder)]
        made = runner.invoke(app, command)
        assert made.exit_code == 0, made.output
        assert sum(info.documents for info in open_dataset(folder).manifest.splits.values()) == 30
        shown = runner.invoke(app, ["show", str(folder), "--verify"])
        assert "[BOS]Tale 0 of a [bold]fox[/bold].[EOS]" in shown.stdout
        assert "0.1 of the documents" in shown.stdout


def test_story_writes_labelled_text_and_prints_the_floor(tmp_path: Path) -> None:
    train, valid = tmp_path / "t.txt", tmp_path / "v.txt"
    options = ["--megabytes", "0.05", "--valid", str(valid), "--valid-stories", "20", "--seed", "3"]
    told = runner.invoke(app, ["story", "--out", str(train), *options])
    assert told.exit_code == 0, told.output
    stories = StoryCorpus(megabytes=0.05, valid_stories=20, seed=3)
    assert list(read_documents(train)) == list(stories.documents("train"))
    assert list(read_documents(valid)) == list(stories.documents("valid"))
    assert "synthetic" in told.stdout
    assert f"entropy floor: {stories.floor():.4f} bits per byte" in told.stdout


@pytest.mark.parametrize("verb", ["story", "tinystories", "prepare", "show"])
def test_help_has_an_example(verb: str) -> None:
    assert f"Example: moonlet data {verb} " in runner.invoke(app, [verb, "--help"]).stdout


def test_prepare_reads_every_format_and_option(tmp_path: Path) -> None:
    rows = [{"a": {"story": f"Tale {i} of a fox."}} for i in range(30)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "books").mkdir()
    for i in range(5):
        (tmp_path / "books" / f"{i}.txt").write_text(f"Book {i}\n<|endoftext|>\ngoes on.")
    valid = str(tmp_path / "books" / "*.txt")
    cases = [
        ([str(tmp_path / "t.jsonl"), "--field", "a.story", "--stories", "20"], 20),
        ([str(tmp_path / "t.jsonl"), "--field", "a.story", "--valid", valid, "--split-by", "file"], 35),
        ([str(tmp_path / "books"), "--split-by", "file", "--workers", "2"], 5),
        (["--kind", "story", "--megabytes", "0.01"], None),
    ]
    for number, (options, documents) in enumerate(cases):
        out = tmp_path / f"out{number}"
        made = runner.invoke(app, ["prepare", *options, "--tokenizer", "byte", "--out", str(out)])
        assert made.exit_code == 0, made.output
        found = sum(info.documents for info in open_dataset(out).manifest.splits.values())
        assert documents is None or found == documents
        assert f"{open_dataset(out).manifest.splits['train'].documents:,}" in made.stdout


def test_a_pattern_that_the_shell_has_filled_in_is_explained(tmp_path: Path) -> None:
    made = runner.invoke(app, ["prepare", "a.txt", "b.txt", "--tokenizer", "byte", "--out", str(tmp_path)])
    assert isinstance(made.exception, ValueError)
    assert "in quotes" in str(made.exception)


def test_the_bar_says_a_line_now_and_then_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moonlet.cli.bytebar._QUIET", 0.0)
    console = Console(file=io.StringIO(), width=200)
    with ByteBar(console) as bar:
        bar.show("train: 10 documents", 2_000_000, 4_000_000)
        bar.show("valid: 1 documents", 500_000, None)
        bar.show("valid: 3 documents", 900_000, 800_000)
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "train: 10 documents, 2.0 of 4.0 MB",
        "valid: 1 documents, 0.5 MB",
        "valid: 3 documents, 0.9 of 0.9 MB",
    ]


def test_the_bar_of_a_terminal_shows_share_and_size() -> None:
    console = Console(file=io.StringIO(), width=150, force_terminal=True)
    with ByteBar(console) as bar:
        bar.show("train: 10 documents", 1_000_000, 4_000_000)
        bar.show("train: 30 documents", 3_000_000, 4_000_000)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "train: 30 documents" in shown
    assert "75%" in shown
    assert "3.0/4.0 MB" in shown
