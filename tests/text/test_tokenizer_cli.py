"""`moonlet tokenizer`: each verb prints what the room says, and its help has an example."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moonlet.cli.tokenizer import app
from moonlet.data.corpus import write_documents
from moonlet.text import load, train_sentencepiece

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


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    write_documents((f"The cat sat on mat number {i} and Lily, a cat, sat with Lily." for i in range(60)), path)
    return path


@pytest.mark.parametrize("kind", ["byte", "bpe", "word", "sentencepiece"])
def test_each_kind_is_trained_shown_and_used(kind: str, stories: Path, tmp_path: Path) -> None:
    if kind == "sentencepiece":
        pytest.importorskip("sentencepiece")
    folder, size = str(tmp_path / kind), "310" if kind == "sentencepiece" else "290"
    trained = runner.invoke(app, ["train", str(stories), "--kind", kind, "--vocab-size", size, "--out", folder])
    assert trained.exit_code == 0, trained.output
    assert f"{kind}, " in trained.stdout
    assert "bytes per token" in trained.stdout
    tokenizer = load(Path(folder))
    assert tokenizer.kind == kind
    encoded = runner.invoke(app, ["encode", folder, "the cat  sat"]).stdout.splitlines()
    assert encoded[0] == " ".join(map(str, tokenizer.encode("the cat  sat")))
    assert ("comes back as 'The cat sat'" in encoded) == (kind == "word")
    about = runner.invoke(app, ["info", folder]).stdout
    assert f"{kind}, {tokenizer.vocab_size} ids" in about
    assert ("unknown token" in about) == (tokenizer.unk_id is not None)


def test_train_refuses_a_kind_it_does_not_know(stories: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["train", str(stories), "--kind", "wordpiece", "--out", str(tmp_path / "k")])
    assert isinstance(result.exception, ValueError)
    assert "byte, bpe, word, sentencepiece" in str(result.exception)


def test_import_takes_over_a_model_file(stories: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    model = train_sentencepiece(["the cat sat on the mat"] * 9, 285)
    (tmp_path / "some.model").write_bytes(model.model)
    result = runner.invoke(app, ["import", str(tmp_path / "some.model"), "--out", str(tmp_path / "k")])
    assert result.exit_code == 0, result.output
    assert "Hugging Face: the same ids" in result.stdout
    assert load(tmp_path / "k").content_hash() == model.content_hash()


def test_compare_prints_a_row_for_each_kind_and_size(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentencepiece")
    monkeypatch.setattr("moonlet.text.compare._ENOUGH", 0.001)
    result = runner.invoke(app, ["compare", str(stories), "--sizes", "310,320"])
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    kinds = [row[0] for row in rows if row and row[0] in ("byte", "bpe", "word", "sentencepiece")]
    assert kinds == ["byte", "bpe", "bpe", "word", "word", "sentencepiece", "sentencepiece"]
    table = [line for line in result.stdout.splitlines() if line.startswith(("  ", " kind", " byte"))]
    assert max(map(len, table)) <= 80


def test_compare_leaves_out_what_is_not_installed_and_says_so(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    result = runner.invoke(app, ["compare", str(stories), "--sizes", "310,320", "--kinds", "byte,sentencepiece"])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("left out") == 1
    assert 'pip install "moonlet[sentencepiece]"' in result.stdout
    alone = runner.invoke(app, ["compare", str(stories), "--kinds", "sentencepiece"])
    assert isinstance(alone.exception, ValueError)


@pytest.mark.parametrize("sizes", ["", "many", "1,x"])
def test_compare_refuses_sizes_that_are_no_numbers(stories: Path, sizes: str) -> None:
    result = runner.invoke(app, ["compare", str(stories), "--sizes", sizes])
    assert isinstance(result.exception, ValueError)
    assert "give e.g. --sizes 1024,4096" in str(result.exception)


@pytest.mark.parametrize("verb", ["train", "import", "compare", "encode", "info"])
def test_help_has_an_example(verb: str) -> None:
    assert f"Example: moonlet tokenizer {verb} " in runner.invoke(app, [verb, "--help"]).stdout
