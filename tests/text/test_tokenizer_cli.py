"""`moonlet tokenizer`: each verb prints what the room says, and its help has an example."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from moonlet.cli.tokenizer import app
from moonlet.data.corpus import write_documents
from moonlet.text import load

runner = CliRunner()


def test_train_encode_info(tmp_path: Path) -> None:
    write_documents((f"The cat sat on mat number {i} and the cat sat." for i in range(30)), tmp_path / "t.txt")
    trained = runner.invoke(
        app, ["train", str(tmp_path / "t.txt"), "--vocab-size", "290", "--out", str(tmp_path / "k")]
    )
    assert trained.exit_code == 0, trained.output
    tokenizer = load(tmp_path / "k")
    assert tokenizer.vocab_size == 290
    encoded = runner.invoke(app, ["encode", str(tmp_path / "k"), "the cat [EOS]"])
    assert encoded.stdout.splitlines()[0] == " ".join(map(str, tokenizer.encode("the cat [EOS]")))
    special = runner.invoke(app, ["encode", str(tmp_path / "k"), "[EOS]", "--allow-special"])
    assert special.stdout.splitlines()[0] == "1"
    about = runner.invoke(app, ["info", str(tmp_path / "k")])
    assert "290 ids" in about.stdout
    assert "[EOS] 1" in about.stdout


@pytest.mark.parametrize("verb", ["train", "encode", "info"])
def test_help_has_an_example(verb: str) -> None:
    assert f"Example: moonlet tokenizer {verb} " in runner.invoke(app, [verb, "--help"]).stdout
