"""What is malformed is one clear line that names the file and, where there is one, the line or row."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from moonlet.data import TextFileCorpus, lines
from moonlet.data.corpus import SEPARATOR, read_documents
from moonlet.data.prepare import prepare
from moonlet.text import ByteTokenizer

GOOD = json.dumps({"text": "fine"}).encode() + b"\n"
PACKED = gzip.compress(b"".join(json.dumps({"text": f"story {i * i}"}).encode() + b"\n" for i in range(9000)))

# name, content, what the message says after the file's path
MALFORMED = [
    ("t.txt", b"", ": the file is empty"),
    ("t.txt", b"\n \n<|endoftext|>\n\n", ": no document in it, only white space"),
    ("t.txt", b"fine\n<|endoftext|>\nbad \xff here\n", ", line 3: byte 0xff at column 5 is not UTF-8"),
    ("t.txt", b"cut in a character \xe2\x80", ", line 1: byte 0xe2 at column 20 is not UTF-8"),
    ("t.txt", "fine\n".encode("utf-16"), ", line 1: byte 0xff at column 1 is not UTF-8; .* -f utf-16"),
    ("t.txt", b"ok\n" + b"x" * 5000, ", line 2: this line is longer than 4,096 bytes"),
    ("t.txt", b"ok ok ok\n" * 1000, ", line 456: this document is longer than 4,096 bytes"),
    ("t.txt.gz", b"no gzip at all", ", line 1: damaged gzip data"),
    ("t.jsonl.gz", PACKED[:-2000], r", line \d{3,4}: damaged gzip data"),
    ("t.jsonl.gz", PACKED[:9000] + b"\0" * 50 + PACKED[9050:], r", line \d+: (damaged gzip data|not valid JSON)"),
    ("t.jsonl", b"", ": the file is empty"),
    ("t.jsonl", b"\n\n", ": no document in it, only empty lines"),
    ("t.jsonl", b'{"text": ""}\n{"text": " "}\n', ": no document in it, .*empty texts"),
    ("t.jsonl", GOOD * 2 + b'{"text": "cut of', ", line 3: not valid JSON, column 10: .*cut off"),
    ("t.jsonl", GOOD + b'{"text": "a"', ", line 2: not valid JSON, .*cut off"),
    ("t.jsonl", GOOD + b"once upon a time\n", ", line 2: not valid JSON, column 1"),
    ("t.jsonl", GOOD + b'{"text": "a"} {"text": "b"}\n', ", line 2: not valid JSON, column 15"),
    ("t.jsonl", GOOD + b'{"text": "\xff"}\n', ", line 2: byte 0xff at column 11 is not UTF-8"),
    ("t.jsonl", GOOD + b'["a", "b"]\n', ", line 2: a list, not an object"),
    ("t.jsonl", GOOD + b'"a story"\n', ", line 2: a string, not an object"),
    ("t.jsonl", GOOD + b"17\n", ", line 2: a number, not an object"),
    ("t.jsonl", GOOD + b"null\n", ", line 2: null, not an object"),
    ("t.jsonl", GOOD + b'{"story": "a", "id": 1}\n', r", line 2: no field 'text' \(fields: 'story', 'id'\)"),
    ("t.jsonl", GOOD + b"{}\n", r", line 2: no field 'text' \(fields: none\)"),
    ("t.jsonl", GOOD + b'{"text": 5}\n', ", line 2: field 'text' is a number, not a string"),
    ("t.jsonl", GOOD + b'{"text": null}\n', ", line 2: field 'text' is null, not a string"),
    ("t.jsonl", GOOD + b'{"text": ["a"]}\n', ", line 2: field 'text' is a list, not a string"),
    ("t.jsonl", GOOD + b'{"text": {"a": "b"}}\n', ", line 2: field 'text' is an object, not a string"),
    ("t.jsonl", GOOD + b'{"text": "a \\ud83d b"}\n', ", line 2: a lone surrogate U\\+D83D at character 2"),
    ("t.jsonl", GOOD + b"[" * 4000 + b"\n", ", line 2: "),
    ("t.jsonl", GOOD + b'{"text": ' + b"1" * 4100 + b"}\n", ", line 2: "),
    ("t.json", GOOD, r": unknown ending '\.json'; moonlet reads \.txt, \.jsonl"),
    ("t.parquet.gz", b"x", r": unknown ending '\.parquet\.gz'"),
    ("t", b"x", ": unknown ending ''"),
]


@pytest.fixture(autouse=True)
def _short_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_DOCUMENT_BYTES", 4096)


def assert_one_line(error: BaseException, path: Path) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 400


@pytest.mark.parametrize(("name", "content", "problem"), MALFORMED)
def test_malformed_text_is_named_with_file_and_line(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}{problem}") as caught:
        prepare(TextFileCorpus(path, valid_fraction=0.5), ByteTokenizer(), tmp_path / "out")
    assert_one_line(caught.value, path)
    assert not (tmp_path / "out" / "manifest.json").exists()


PARQUET = [
    ({"text": ["a", None, "c"]}, ", row 1: column 'text' is null, not a string"),
    ({"text": [1, 2, 3]}, ": column 'text' holds int64, not strings"),
    ({"text": [["a"], ["b"]]}, ": column 'text' holds list<.*>, not strings"),
    ({"story": ["a"], "id": [1]}, r": no column 'text' \(columns: 'story', 'id'\)"),
    ({"text": ["", " "]}, ": no document in it, no row"),
    ({"text": []}, ": column 'text' holds null, not strings"),
    ({"text": ["a", "b" * 5000]}, ", row 1: a document of 5,000 characters"),
]


@pytest.mark.parametrize(("columns", "problem"), PARQUET)
def test_malformed_parquet_is_named_with_file_and_row(
    tmp_path: Path, columns: dict[str, Sequence[object]], problem: str
) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow, the extra `parquet`")
    import pyarrow.parquet as parquet

    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(ValueError, match=rf"t\.parquet{problem}") as caught:
        list(TextFileCorpus(path).documents("train"))
    assert_one_line(caught.value, path)


@pytest.mark.parametrize("damage", ["cut", "head", "middle", "no parquet", "bad utf-8"])
def test_damaged_parquet_is_named(tmp_path: Path, damage: str) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow, the extra `parquet`")
    import pyarrow.parquet as parquet

    path = tmp_path / "t.parquet"
    texts = [f"story {i} of many" * 5 for i in range(2000)]
    column = pyarrow.array(texts)
    if damage == "bad utf-8":
        raw = pyarrow.array([b"fine", b"bad \xff"])
        column = pyarrow.StringArray.from_buffers(2, *raw.buffers()[1:])
    parquet.write_table(pyarrow.table({"text": column}), path, compression="snappy", use_dictionary=False)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "head":
        content[:4] = content[-4:] = b"XXXX"
    elif damage == "middle":
        content[40:2000] = bytes(1960)
    elif damage == "no parquet":
        content = bytearray(b"once upon a time " * 9)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.parquet, row \d+: (damaged parquet data|byte 0xff)") as caught:
        list(read_documents(path))
    assert_one_line(caught.value, path)


def test_a_path_without_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    (tmp_path / "empty" / "sub" / "notes.md").write_text("x")
    for path, kind, problem in (
        (tmp_path / "empty", ValueError, "empty: no text in this folder; moonlet reads"),
        (tmp_path / "none.txt", FileNotFoundError, r"none\.txt: no such text file"),
        (tmp_path / "*.jsonl", FileNotFoundError, r"\*\.jsonl: no file fits this pattern"),
    ):
        with pytest.raises(kind, match=problem) as caught:
            TextFileCorpus(path)
        assert_one_line(caught.value, path)


def test_one_bad_file_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes(b"fine\n\xff")
    with pytest.raises(ValueError, match=r"b\.txt, line 2: byte 0xff") as caught:
        list(TextFileCorpus(tmp_path).documents("train"))
    assert_one_line(caught.value, tmp_path / "b.txt")
    (tmp_path / "b.txt").write_text("fine")
    with pytest.raises(ValueError, match=r"b\.txt: this validation file is also one of the training files"):
        TextFileCorpus(tmp_path, tmp_path / "b.txt")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.txt"
    path.write_text("fine")

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    # The user that runs the tests may be allowed to read everything.
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied.*t\.txt"):
        list(TextFileCorpus(path).documents("train"))


def test_a_separator_cannot_hide_in_a_json_text(tmp_path: Path) -> None:
    text = f"one\n{SEPARATOR}\nstill one"
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": text}))
    assert list(read_documents(tmp_path / "t.jsonl")) == [text]


class Liar(ByteTokenizer):
    """A tokenizer that gives ids beyond its vocabulary."""

    def __init__(self, vocab_size: int, shift: int) -> None:
        super().__init__()
        self.vocab_size, self.shift = vocab_size, shift

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        return [[i + self.shift for i in ids] for ids in super().encode_batch(texts)]


@pytest.mark.parametrize(
    ("tokenizer", "problem"),
    [
        (Liar(65_536, 65_400), r"t\.txt: the byte tokenizer gives id 65\d{3}, but its vocabulary has 65536 ids \(st"),
        (Liar(300, 200), r"t\.txt: the byte tokenizer gives id 3\d\d, but its vocabulary has 300 ids"),
        (Liar(2**32 + 1, 0), r"a vocabulary of 4,294,967,297 ids is over the widest dtype"),
    ],
)
def test_a_vocabulary_over_the_dtype_is_named(tmp_path: Path, tokenizer: Liar, problem: str) -> None:
    (tmp_path / "t.txt").write_text("zebra\n<|endoftext|>\nzoo zoo\n")
    with pytest.raises(ValueError, match=problem) as caught:
        prepare(TextFileCorpus(tmp_path / "t.txt"), tokenizer, tmp_path / "out")
    assert "\n" not in str(caught.value)
