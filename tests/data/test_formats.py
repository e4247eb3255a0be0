"""The same text gives the same documents and the same bytes, whatever the format and however it lies in files."""

from __future__ import annotations

import builtins
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.config.sections import DataSettings
from moonlet.data import Corpus, StoryCorpus, TextFileCorpus, fingerprint, open_dataset
from moonlet.data.corpus import SEPARATOR, read_documents, write_documents
from moonlet.data.expected import expected_bytes
from moonlet.data.open import open_corpus
from moonlet.data.prepare import prepare
from moonlet.text import ByteTokenizer

DOCUMENTS = [f'Story {i}.\n\n\u201cHi\u201d, said the \U0001f98a {i * 7}.\r\n  Two "lines"\t\\.' for i in range(200)]


def write_lines(path: Path, documents: list[str], field: str = "text", ascii_only: bool = True) -> Path:
    rows = ({"id": i, field: text} for i, text in enumerate(documents))
    path.write_text("".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, documents: list[str], **options: Any) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow, the extra `parquet`")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"id": list(range(len(documents))), "text": documents}), path, **options)
    return path


def write_text(path: Path, documents: list[str]) -> Path:
    write_documents(documents, path)
    return path


def write_packed(path: Path, documents: list[str]) -> Path:
    plain = write_text(path.with_suffix(""), documents)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return path


def shards(corpus: Corpus, folder: Path) -> dict[str, bytes]:
    prepare(corpus, ByteTokenizer(), folder, shard_tokens=1000)
    return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


WRITERS: list[tuple[str, Callable[[Path, list[str]], Path]]] = [
    ("t.txt", write_text),
    ("t.txt.gz", write_packed),
    ("t.jsonl", write_lines),
    ("t.ndjson", lambda path, documents: write_lines(path, documents, ascii_only=False)),
    ("t.parquet", write_parquet),
]


@pytest.mark.parametrize("limit", [0, 50])
def test_the_same_text_in_every_format_gives_byte_identical_shards(tmp_path: Path, limit: int) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow, the extra `parquet`")
    made = {}
    for name, write in WRITERS:
        corpus = TextFileCorpus(write(tmp_path / name, DOCUMENTS), limit=limit)
        made[name] = shards(corpus, tmp_path / "out" / name)
    assert len(made["t.txt"]) > 6
    assert all(files == made["t.txt"] for files in made.values())


def test_the_same_text_in_one_file_or_in_several_of_mixed_formats_gives_byte_identical_shards(tmp_path: Path) -> None:
    (tmp_path / "many" / "b").mkdir(parents=True)
    write_text(tmp_path / "many" / "a.txt", DOCUMENTS[:50])
    write_lines(tmp_path / "many" / "b" / "a.jsonl", DOCUMENTS[50:90])
    write_packed(tmp_path / "many" / "b" / "b.txt.gz", DOCUMENTS[90:150])
    write_parquet(tmp_path / "many" / "c.parquet", DOCUMENTS[150:])
    (tmp_path / "many" / ".hidden.txt").write_text("not read")
    (tmp_path / "many" / "notes.md").write_text("not read")
    whole = shards(TextFileCorpus(write_text(tmp_path / "t.txt", DOCUMENTS)), tmp_path / "o1")
    assert shards(TextFileCorpus(tmp_path / "many"), tmp_path / "o2") == whole
    assert shards(TextFileCorpus(str(tmp_path / "many" / "**" / "*.*[tl]*")), tmp_path / "o3") == whole


@given(documents=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8))
def test_any_text_reads_back_alike_from_json_and_parquet(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("f")
    documents = [*documents, "end"]
    wanted = [stripped for document in documents if (stripped := document.strip())]
    assert list(read_documents(write_lines(folder / "t.jsonl", documents))) == wanted
    assert list(read_documents(write_parquet(folder / "t.parquet", documents))) == wanted


def test_a_file_can_be_one_document(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"Book {i}.\n{SEPARATOR}\nStill book {i}.\n")
    wanted = [f"Book {i}.\n{SEPARATOR}\nStill book {i}." for i in range(3)]
    assert list(read_documents(tmp_path, split_by="file")) == wanted
    corpus = TextFileCorpus(tmp_path, split_by="file")
    assert [*corpus.documents("train"), *corpus.documents("valid")] == wanted
    assert len(list(read_documents(tmp_path))) == 6


def test_a_field_may_have_any_name_and_lie_in_an_object(tmp_path: Path) -> None:
    lines = [{"a": {"b": "deep"}, "a.c": "dotted", "story": "flat"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert [list(read_documents(tmp_path / "t.jsonl", field)) for field in ("a.b", "a.c", "story")] == [
        ["deep"],
        ["dotted"],
        ["flat"],
    ]


def test_a_column_may_lie_in_a_struct_or_be_a_dictionary(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow, the extra `parquet`")
    import pyarrow.parquet as parquet

    coded = pyarrow.array(["x", "y", "x"]).dictionary_encode()
    large = pyarrow.array(["l1", "l2", "l3"], pyarrow.large_string())
    deep = [{"b": f"deep {i}", "c": 1} for i in range(3)]
    table = pyarrow.table({"coded": coded, "large": large, "a": deep, "a.c": ["d1", "d2", "d3"]})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    found = {field: list(read_documents(tmp_path / "t.parquet", field)) for field in ("coded", "large", "a.b")}
    assert found == {"coded": ["x", "y", "x"], "large": ["l1", "l2", "l3"], "a.b": ["deep 0", "deep 1", "deep 2"]}


def test_only_the_first_documents_are_read_and_then_split(tmp_path: Path) -> None:
    path = write_text(tmp_path / "t.txt", DOCUMENTS)
    corpus = TextFileCorpus(path, limit=50)
    assert sorted([*corpus.documents("train"), *corpus.documents("valid")]) == sorted(DOCUMENTS[:50])
    valid = write_text(tmp_path / "v.txt", ["one", "two"])
    both = TextFileCorpus(path, valid, limit=50)
    assert (list(both.documents("train")), list(both.documents("valid"))) == (DOCUMENTS[:50], ["one", "two"])


def test_facts_tell_apart_what_gives_other_documents(tmp_path: Path) -> None:
    write_text(tmp_path / "t.txt", DOCUMENTS)
    write_lines(tmp_path / "t.jsonl", DOCUMENTS)
    write_lines(tmp_path / "v.jsonl", DOCUMENTS[:3])
    corpora = [
        TextFileCorpus(tmp_path / "t.txt"),
        TextFileCorpus(tmp_path / "t.txt", limit=5),
        TextFileCorpus(tmp_path / "t.txt", split_by="file"),
        TextFileCorpus(tmp_path / "t.txt", valid_fraction=0.2),
        TextFileCorpus(tmp_path / "t.txt", tmp_path / "v.jsonl"),
        TextFileCorpus(tmp_path / "t.jsonl"),
        TextFileCorpus(tmp_path / "t.jsonl", field="id"),
        TextFileCorpus(tmp_path),
    ]
    assert len({json.dumps(corpus.describe(), sort_keys=True) for corpus in corpora}) == len(corpora)


def test_a_moved_folder_is_the_same_data(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_text(tmp_path / name / "t.txt", DOCUMENTS[:100])
        write_lines(tmp_path / name / "u.jsonl", DOCUMENTS[100:])
    made = prepare(TextFileCorpus(tmp_path / "a"), ByteTokenizer(), tmp_path / "out")
    assert prepare(TextFileCorpus(tmp_path / "b"), ByteTokenizer(), tmp_path / "out") == made


def test_a_file_is_hashed_once_while_it_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "t.txt", DOCUMENTS)
    digest, hashed = fingerprint.hashlib.file_digest, []
    monkeypatch.setattr(fingerprint.hashlib, "file_digest", lambda *at: hashed.append(1) or digest(*at))
    first = [TextFileCorpus(path).describe() for _ in range(3)]
    assert first[0] == first[1] == first[2]
    assert len(hashed) == 1
    write_text(path, DOCUMENTS[1:])
    assert TextFileCorpus(path).describe() != first[0]


def test_expected_bytes_are_about_right(tmp_path: Path) -> None:
    write_text(tmp_path / "t.txt", DOCUMENTS)
    write_parquet(tmp_path / "t.parquet", DOCUMENTS, row_group_size=20)
    for corpus in (
        TextFileCorpus(tmp_path / "t.txt"),
        TextFileCorpus(tmp_path / "t.parquet"),
        TextFileCorpus(tmp_path / "t.txt", limit=60),
        TextFileCorpus(tmp_path / "t.txt", tmp_path / "t.parquet"),
        StoryCorpus(40, 40),
        StoryCorpus(megabytes=0.05, valid_stories=40),
    ):
        real = sum(len(text.encode()) for text in corpus.documents("train"))
        assert expected_bytes(corpus, "train") == pytest.approx(real, rel=0.4)
    assert expected_bytes(object(), "train") is None


def test_a_recipe_opens_each_kind_of_corpus(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", DOCUMENTS, field="story")
    valid = write_lines(tmp_path / "v.jsonl", ["one"], field="story")
    for kind in ("text", "tinystories"):
        settings = DataSettings(kind=kind, path=str(path), valid=str(valid), field="story", stories=7)
        corpus = open_corpus(settings)
        assert list(corpus.documents("train")) == DOCUMENTS[:7]
        assert list(corpus.documents("valid")) == ["one"]
    told = open_corpus(DataSettings(megabytes=0.01, valid_stories=2, seed=3))
    assert told.describe() == StoryCorpus(megabytes=0.01, valid_stories=2, seed=3).describe()
    for bad, problem in (("text", "data.path is empty"), ("books", "data.kind is 'books'")):
        with pytest.raises(ValueError, match=problem):
            open_corpus(DataSettings(kind=bad))


def test_parquet_without_pyarrow_names_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    real = builtins.__import__

    def blocked(name: str, *rest: Any, **options: Any) -> Any:
        if name.split(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(ValueError, match=r'pip install "moonlet\[parquet\]"'):
        list(read_documents(tmp_path / "t.parquet"))


def test_each_document_keeps_its_original_size(tmp_path: Path) -> None:
    corpus = TextFileCorpus(write_text(tmp_path / "t.txt", DOCUMENTS))
    manifest = prepare(corpus, ByteTokenizer(), tmp_path / "out")
    for split in ("train", "valid"):
        stream = open_dataset(tmp_path / "out", verify=True).tokens(split)
        sizes = [stream.document_bytes(i) for i in range(stream.n_documents)]
        assert sizes == [len(text.encode()) for text in corpus.documents(split)]
        assert sum(sizes) == manifest.splits[split].bytes
        with pytest.raises(IndexError):
            stream.document_bytes(len(sizes))


def test_a_data_set_of_the_first_schema_is_still_read(tmp_path: Path) -> None:
    corpus = TextFileCorpus(write_text(tmp_path / "t.txt", DOCUMENTS))
    prepare(corpus, ByteTokenizer(), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest["schema"] = 1
    for split in manifest["splits"].values():
        (tmp_path / "out" / split.pop("sizes")["file"]).unlink()
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    stream = open_dataset(tmp_path / "out", verify=True).tokens("valid")
    sizes = [stream.document_bytes(i) for i in range(stream.n_documents)]
    assert sizes == [len(text.encode()) for text in corpus.documents("valid")]
    assert prepare(corpus, ByteTokenizer(), tmp_path / "out").schema == 1
