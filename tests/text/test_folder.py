"""A damaged tokenizer folder is refused with one line that names the file and the problem."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moonlet.text import ByteTokenizer, load, train_bpe, train_tokenizer, train_word

Edit = Callable[[dict[str, Any]], object]
PIPELINE, CONFIG = "tokenizer.json", "tokenizer_config.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train_bpe(["the cat sat on the mat, the cat sat"] * 5, 280).save(tmp_path)
    return tmp_path


def rewrite(path: Path, edit: Edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "edit", "problem"),
    [
        (CONFIG, lambda c: c.pop("moonlet"), "moonlet.kind is None"),
        (CONFIG, lambda c: c.update(moonlet=3), "moonlet.kind is None"),
        (CONFIG, lambda c: c["moonlet"].update(kind="wordpiece"), "'wordpiece'"),
        (CONFIG, lambda c: c["moonlet"].update(content_hash="0" * 64), "does not fit"),
        (CONFIG, lambda c: c["moonlet"].update(kind="byte"), "section 'pre_tokenizer'"),
        (PIPELINE, lambda c: c.pop("model"), "no BPE model"),
        (PIPELINE, lambda c: c.update(model=[]), "no BPE model"),
        (PIPELINE, lambda c: c["model"].update(merges=["a"]), "no BPE model"),
        (PIPELINE, lambda c: c["model"].update(merges=[["zz", "y"]]), "no earlier merge"),
        (PIPELINE, lambda c: c["model"]["merges"].pop(), "section 'model' (in vocab)"),
        (PIPELINE, lambda c: c["model"]["vocab"].update(a=7), "section 'model' (in vocab)"),
        (PIPELINE, lambda c: c["model"].update(dropout=0.5), "section 'model' (in dropout)"),
        (PIPELINE, lambda c: c.update(normalizer={"type": "Lowercase"}), "section 'normalizer'"),
        (PIPELINE, lambda c: c["added_tokens"].pop(), "section 'added_tokens'"),
        (PIPELINE, lambda c: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="(("), "tokenizer.json"),
        (PIPELINE, lambda c: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=5), "no BPE model"),
    ],
)
def test_edited_folder_is_refused(folder: Path, name: str, edit: Edit, problem: str) -> None:
    rewrite(folder / name, edit)
    with pytest.raises(ValueError, match=r"tokenizer.*\.json") as caught:
        load(folder)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "edit", "problem"),
    [
        (CONFIG, lambda c: c["moonlet"].pop("surfaces"), "moonlet.surfaces is not a table"),
        (CONFIG, lambda c: c["moonlet"].update(glue={"-": 3}), "moonlet.glue is not a table"),
        (CONFIG, lambda c: c["moonlet"].update(glue={"-": "x"}), "a mark has one of"),
        (CONFIG, lambda c: c["moonlet"]["surfaces"].update(lily="Tim"), "no spelling"),
        (CONFIG, lambda c: c["moonlet"]["surfaces"].pop("lily"), "does not fit"),
        (CONFIG, lambda c: c["moonlet"].update(kind="words"), "moonlet.kind is 'words'"),
        (PIPELINE, lambda c: c.pop("model"), "no WordLevel model"),
        (PIPELINE, lambda c: c["model"].update(vocab=["the"]), "no WordLevel model"),
        (PIPELINE, lambda c: c["model"]["vocab"].update(the="x"), "no WordLevel model"),
        (PIPELINE, lambda c: c["model"]["vocab"].update({"two words": 99}), "no word in lower case"),
        (PIPELINE, lambda c: c["model"]["vocab"].update({"<unk>": 3}), "section 'model' (in vocab)"),
        (PIPELINE, lambda c: c.update(normalizer=None), "section 'normalizer'"),
        (PIPELINE, lambda c: c["pre_tokenizer"].update(invert=False), "section 'pre_tokenizer' (in invert)"),
    ],
)
def test_edited_word_folder_is_refused(tmp_path: Path, name: str, edit: Edit, problem: str) -> None:
    train_word(["the girl saw Lily and Lily saw the well-known sea"], 99).save(tmp_path)
    rewrite(tmp_path / name, edit)
    with pytest.raises(ValueError, match=rf"{name}: ") as caught:
        load(tmp_path)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "edit", "problem"),
    [
        (CONFIG, lambda c: c["moonlet"].update(content_hash="0" * 64), "does not fit tokenizer.model"),
        (PIPELINE, lambda c: c["model"]["merges"].pop(), "section 'model' (in merges)"),
        (PIPELINE, lambda c: c["model"]["vocab"].update(a=7), "section 'model' (in vocab)"),
    ],
)
def test_edited_sentencepiece_folder_is_refused(tmp_path: Path, name: str, edit: Edit, problem: str) -> None:
    pytest.importorskip("sentencepiece")
    train_tokenizer("sentencepiece", ["the cat sat on the mat, the cat sat"] * 5, 290).save(tmp_path)
    rewrite(tmp_path / name, edit)
    with pytest.raises(ValueError, match=rf"{name}: ") as caught:
        load(tmp_path)
    assert problem in str(caught.value)


def test_sentencepiece_folder_needs_its_model_and_no_more(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    tokenizer = train_tokenizer("sentencepiece", ["the cat sat on the mat, the cat sat"] * 5, 290)
    tokenizer.save(tmp_path)
    (tmp_path / PIPELINE).unlink()
    assert load(tmp_path).content_hash() == tokenizer.content_hash()
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model: no such file"):
        load(tmp_path)


@pytest.mark.parametrize("name", [PIPELINE, CONFIG])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not valid JSON"),
        (b'{"a": ', "not valid JSON"),
        (b"[1]", "expected a JSON object"),
        (b'{"a": "\xff"}', "not UTF-8"),
    ],
)
def test_file_that_is_no_json_object_is_refused(folder: Path, name: str, content: bytes, problem: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.*{problem}"):
        load(folder)


def test_missing_file_is_named(folder: Path) -> None:
    (folder / PIPELINE).unlink()
    with pytest.raises(FileNotFoundError, match=PIPELINE):
        load(folder)


def test_a_failed_save_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / PIPELINE).read_bytes()

    def full_disk(_descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        ByteTokenizer().save(folder)
    assert (folder / PIPELINE).read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == [PIPELINE, CONFIG]
