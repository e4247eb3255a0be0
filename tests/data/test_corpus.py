"""Corpora: documents in order, two splits that share none, and clear errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonlet.config.sections import DataSettings
from moonlet.data import Corpus, StoryCorpus, TextFileCorpus
from moonlet.data.corpus import SEPARATOR, read_documents, write_documents
from moonlet.data.open import open_corpus
from moonlet.data.story import StoryWorld
from moonlet.data.story.asking import with_questions

DOCUMENTS = [f"Story {i}.\n\nThe fox number {i * 7} said \u201chi\u201d.\n  Two lines." for i in range(200)]


def written(path: Path, documents: list[str]) -> Path:
    write_documents(documents, path)
    return path


def both(corpus: Corpus) -> tuple[list[str], list[str]]:
    return list(corpus.documents("train")), list(corpus.documents("valid"))


def test_written_documents_read_back(tmp_path: Path) -> None:
    count, size = write_documents(iter(DOCUMENTS), tmp_path / "t.txt")
    assert list(read_documents(tmp_path / "t.txt")) == DOCUMENTS
    assert (count, size) == (200, sum(len(document.encode()) for document in DOCUMENTS))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n<|endoftext|>\nb", ["a", "b"]),
        ("<|endoftext|>\n\n a \n\nb\t\n  <|endoftext|>  \n \n<|endoftext|>\n", ["a \n\nb"]),
        ("\ufeffa\r\n<|endoftext|>\r\nb\r\nc\r\n", ["a", "b\r\nc"]),
        ("the mark <|endoftext|> inside a line is text", ["the mark <|endoftext|> inside a line is text"]),
        ("\u2028a\u0085b\x0cc", ["a\u0085b\x0cc"]),
    ],
)
def test_documents_lie_between_separator_lines(tmp_path: Path, text: str, expected: list[str]) -> None:
    (tmp_path / "t.txt").write_bytes(text.encode())
    assert list(read_documents(tmp_path / "t.txt")) == expected


@settings(max_examples=100, deadline=None)
@given(
    documents=st.lists(st.text(min_size=1).map(str.strip).filter(bool), min_size=2, max_size=30, unique=True),
    fraction=st.sampled_from([0.01, 0.1, 0.5, 0.99]),
)
def test_splits_share_nothing_keep_order_and_are_never_empty(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], fraction: float
) -> None:
    # A byte order mark at the very front is the file's, not the document's.
    documents = [document.lstrip("\ufeff").strip() or "x" for document in dict.fromkeys(documents)]
    documents = list(dict.fromkeys(documents))
    corpus = TextFileCorpus(written(tmp_path_factory.mktemp("c") / "t.txt", documents), valid_fraction=fraction)
    train, valid = both(corpus)
    if len(documents) == 1:
        return
    assert train
    assert valid
    assert not set(train) & set(valid)
    assert sorted(train + valid) == sorted(documents)
    assert train == [document for document in documents if document in set(train)]
    assert valid == [document for document in documents if document in set(valid)]


def test_split_is_about_the_fraction_and_adding_documents_moves_none(tmp_path: Path) -> None:
    valid = both(TextFileCorpus(written(tmp_path / "a.txt", DOCUMENTS)))[1]
    assert 8 <= len(valid) <= 35
    longer = [DOCUMENTS[0], "new", *DOCUMENTS[1:], "last"]
    assert set(valid) <= set(both(TextFileCorpus(written(tmp_path / "b.txt", longer)))[1])


def test_copies_of_a_document_lie_on_one_side(tmp_path: Path) -> None:
    train, valid = both(TextFileCorpus(written(tmp_path / "t.txt", DOCUMENTS * 2)))
    assert not set(train) & set(valid)
    assert len(train) + len(valid) == 400


def test_a_single_document_is_cut_between_lines(tmp_path: Path) -> None:
    lines = "\n".join(f"line {i} of a long play" for i in range(100))
    train, valid = both(TextFileCorpus(written(tmp_path / "t.txt", [lines])))
    assert train[0] + "\n" + valid[0] == lines
    assert (len(train), len(valid)) == (1, 1)
    assert 0.85 < len(train[0]) / len(lines) <= 0.9


def test_a_validation_file_is_the_validation_split(tmp_path: Path) -> None:
    corpus = TextFileCorpus(written(tmp_path / "t.txt", DOCUMENTS[:9]), written(tmp_path / "v.txt", DOCUMENTS[9:12]))
    assert both(corpus) == (DOCUMENTS[:9], DOCUMENTS[9:12])


def test_description_follows_the_content(tmp_path: Path) -> None:
    first = TextFileCorpus(written(tmp_path / "a.txt", DOCUMENTS)).describe()
    same = TextFileCorpus(written(tmp_path / "b.txt", DOCUMENTS)).describe()
    other = TextFileCorpus(written(tmp_path / "c.txt", DOCUMENTS[1:])).describe()
    assert {**first, "path": ""} == {**same, "path": ""}
    assert first["sha256"] != other["sha256"]
    assert TextFileCorpus(tmp_path / "a.txt").floor() is None


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"fine\n<|endoftext|>\nbad \xff here\n", r"t\.txt, line 3: byte 0xff at column 5 is not UTF-8"),
        ("fine\n".encode("utf-16"), r"t\.txt, line 1: byte 0xff"),
        (b"\n \n<|endoftext|>\n\n", r"t\.txt: no document"),
        (b"x", r"t\.txt: its only document \(1 characters\) is too short"),
    ],
)
def test_malformed_text_names_file_and_line(tmp_path: Path, content: bytes, problem: str, split: str) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        list(TextFileCorpus(tmp_path / "t.txt").documents(split))


def test_impossible_corpora_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "t.txt", DOCUMENTS[:3])
    (tmp_path / "empty.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        TextFileCorpus(tmp_path / "none.txt")
    with pytest.raises(ValueError, match=r"empty\.txt: the file is empty"):
        TextFileCorpus(path, tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="are one"):
        TextFileCorpus(path, path)
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="valid_fraction"):
            TextFileCorpus(path, valid_fraction=fraction)
    with pytest.raises(ValueError, match="unknown split 'test'"):
        TextFileCorpus(path).documents("test")


def test_a_document_never_holds_a_separator_line(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(f"{SEPARATOR}\n{SEPARATOR}\na\n{SEPARATOR}\nb\n{SEPARATOR}")
    assert list(read_documents(tmp_path / "t.txt")) == ["a", "b"]


@dataclass
class Told:
    text: str
    bits: float


def test_questions_follow_their_stories_where_asked_for() -> None:
    plain, asked = StoryCorpus(5, 3), StoryCorpus(5, 3, questions=True)
    for split in ("train", "valid"):
        texts = list(asked.documents(split))
        assert all(text.startswith(story) for text, story in zip(texts, plain.documents(split), strict=True))
        assert texts == [with_questions(s).text for s in islice(StoryWorld(0).stories(5, split=split), len(texts))]
    bits = sum(with_questions(story).bits for story in StoryWorld(0).stories(3, split="valid"))
    assert asked.floor() == pytest.approx(bits / sum(len(t.encode()) for t in asked.documents("valid")))
    assert asked.describe() != plain.describe()
    wanted = DataSettings(questions=True, valid_stories=3)
    assert list(open_corpus(wanted).documents("valid")) == list(asked.documents("valid"))


class World:
    """Stands in for the story world: story i of a split is known."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def stories(self, count: int, start: int = 0, split: str = "train") -> Iterator[Told]:
        for i in range(start, start + count):
            yield Told(f"{split} story {i} of world {self.seed}. \u201cHi\u201d", bits=10.0 + i)


@pytest.fixture
def _stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moonlet.data.story.StoryWorld", World, raising=False)


@pytest.mark.usefixtures("_stub")
class TestStoryCorpus:
    def test_is_synthetic_and_says_so(self) -> None:
        corpus = StoryCorpus(5, 3, 1)
        assert isinstance(corpus, Corpus)
        assert corpus.synthetic
        assert "synthetic" in corpus.name

    def test_tells_the_stories_of_the_world(self) -> None:
        train, valid = both(StoryCorpus(2500, 3, seed=7))
        assert train == [told.text for told in World(7).stories(2500)]
        assert valid == [told.text for told in World(7).stories(3, split="valid")]

    def test_megabytes_stop_at_the_story_that_reaches_them(self) -> None:
        train = list(StoryCorpus(megabytes=0.1, seed=7).documents("train"))
        size = sum(len(text.encode()) for text in train)
        assert size - len(train[-1].encode()) < 100_000 <= size
        assert len(set(train)) == len(train) > 2048

    def test_floor_is_bits_over_bytes_of_the_validation_stories(self) -> None:
        corpus = StoryCorpus(5, 3, seed=7)
        size = sum(len(text.encode()) for text in corpus.documents("valid"))
        assert corpus.floor() == pytest.approx((10 + 11 + 12) / size)

    def test_description_changes_with_seed_size_and_world(self, monkeypatch: pytest.MonkeyPatch) -> None:
        facts = [StoryCorpus(5, 3, 7), StoryCorpus(6, 3, 7), StoryCorpus(5, 4, 7), StoryCorpus(5, 3, 8)]
        described = [str(corpus.describe()) for corpus in [*facts, StoryCorpus(megabytes=5, valid_stories=3, seed=7)]]
        monkeypatch.setattr(Told, "__init__", lambda self, text, bits: setattr(self, "text", text + "!"))
        described.append(str(StoryCorpus(5, 3, 7).describe()))
        assert len(set(described)) == 6
        assert str(StoryCorpus(5, 3, 7).describe()) == described[-1]

    def test_impossible_sizes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="either stories or megabytes"):
            StoryCorpus()
        with pytest.raises(ValueError, match="either stories or megabytes"):
            StoryCorpus(5, megabytes=1)
        for bad in ({"stories": 0}, {"megabytes": -1.0}, {"stories": 5, "valid_stories": 0}):
            with pytest.raises(ValueError, match="above 0"):
                StoryCorpus(**bad)  # type: ignore[arg-type]


def test_the_story_world_itself_is_a_corpus_and_survives_a_text_file(tmp_path: Path) -> None:
    corpus = StoryCorpus(30, 20, seed=3)
    train, valid = both(corpus)
    assert (len(set(train)), len(set(valid))) == (30, 20)
    assert not set(train) & set(valid)
    assert 0.0 < corpus.floor() < 8.0
    file = TextFileCorpus(written(tmp_path / "t.txt", train), written(tmp_path / "v.txt", valid))
    assert both(file) == (train, valid)
