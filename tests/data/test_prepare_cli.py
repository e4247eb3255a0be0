"""`moonlet data`: a text file goes in, shards come out, and the help has examples."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

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


@pytest.mark.parametrize("verb", ["story", "prepare", "show"])
def test_help_has_an_example(verb: str) -> None:
    assert f"Example: moonlet data {verb} " in runner.invoke(app, [verb, "--help"]).stdout
