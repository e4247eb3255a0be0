"""Preparation: exact tokens, equal bytes each time, nothing half-done, nothing overwritten."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moonlet.data import Dataset, TokenStream, open_dataset
from moonlet.data.manifest import Manifest
from moonlet.data.prepare import folder_name, prepare
from moonlet.text import ByteTokenizer, train_bpe
from moonlet.text.tokenizer import Tokenizer

TRAIN = [f"Tale {i}: the fox \U0001f98a met [EOS] number {i * i}.\n\nEnd." for i in range(40)]
VALID = [f"Other tale {i}." for i in range(7)]


class ListCorpus:
    """A corpus in memory that can fail midway."""

    name = "List of tales.txt"
    synthetic = False

    def __init__(self, train: list[str] = TRAIN, valid: list[str] = VALID, fail_after: int | None = None) -> None:
        self.texts = {"train": train, "valid": valid}
        self.fail_after = fail_after
        self.path = "here"
        self.reads = 0

    def documents(self, split: str) -> Iterator[str]:
        self.reads += 1
        for i, text in enumerate(self.texts[split]):
            if split == "valid" and i == self.fail_after:
                raise KeyboardInterrupt
            yield text

    def describe(self) -> dict[str, object]:
        return {"kind": "list", "path": self.path, "counts": tuple(len(texts) for texts in self.texts.values())}

    def floor(self) -> float | None:
        return 0.75


class WideTokenizer(ByteTokenizer):
    """A byte tokenizer that claims a vocabulary beyond 16 bits, and uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size = 70_000

    def encode_batch(self, texts: object, *, allow_special: bool = False) -> list[list[int]]:
        return [[i + 69_000 for i in ids] for ids in super().encode_batch(texts)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TRAIN, 300)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def expected_stream(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    return [i for ids in tokenizer.encode_batch(texts) for i in (tokenizer.bos_id, *ids, tokenizer.eos_id)]


@pytest.mark.parametrize("shard_tokens", [1, 7, 100, 2**26])
def test_shards_hold_every_document_between_bos_and_eos(
    tokenizer: Tokenizer, tmp_path: Path, shard_tokens: int
) -> None:
    manifest = prepare(ListCorpus(TRAIN[:9]), tokenizer, tmp_path, shard_tokens=shard_tokens)
    dataset = open_dataset(tmp_path, verify=True)
    for split, texts in (("train", TRAIN[:9]), ("valid", VALID)):
        stream, info = dataset.tokens(split), manifest.splits[split]
        wanted = expected_stream(tokenizer, texts)
        assert stream.read(0, len(stream)).tolist() == wanted
        assert (info.documents, info.tokens) == (len(texts), len(wanted))
        assert info.bytes == sum(len(text.encode()) for text in texts)
        assert [shard.count for shard in info.shards[:-1]] == [shard_tokens] * (len(info.shards) - 1)
        decoded = [tokenizer.decode(stream.document(i).tolist(), skip_special=True) for i in range(stream.n_documents)]
        assert decoded == texts


def test_a_special_name_in_a_document_is_no_special_token(tokenizer: Tokenizer, tmp_path: Path) -> None:
    prepare(ListCorpus(), tokenizer, tmp_path)
    stream = open_dataset(tmp_path).tokens("train")
    assert np.count_nonzero(stream.read(0, len(stream)) == tokenizer.eos_id) == len(TRAIN)


def test_width_follows_the_vocabulary(tokenizer: Tokenizer, tmp_path: Path) -> None:
    narrow = prepare(ListCorpus(), tokenizer, tmp_path / "narrow")
    wide = prepare(ListCorpus(), WideTokenizer(), tmp_path / "wide")
    assert (narrow.dtype, wide.dtype) == ("uint16", "uint32")
    first = open_dataset(tmp_path / "wide").tokens("valid").document(0)
    assert first.tolist() == [0, *(i + 69_000 for i in ByteTokenizer().encode(VALID[0])), 1]
    raw = (tmp_path / "wide" / "valid-00000.bin").read_bytes()
    assert raw[:8] == (0).to_bytes(4, "little") + (69_016 + ord("O")).to_bytes(4, "little")


def test_prepared_twice_is_byte_identical(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("a", "b"):
        prepare(ListCorpus(), tokenizer, tmp_path / name, shard_tokens=100)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_grouping_does_not_change_the_bytes(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(ListCorpus(), tokenizer, tmp_path / "a", shard_tokens=100)
    monkeypatch.setattr("moonlet.data.encode.GROUP_BYTES", 50)
    seen: list[tuple[str, int, int]] = []
    prepare(ListCorpus(), tokenizer, tmp_path / "b", shard_tokens=100, progress=lambda *at: seen.append(at))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(seen) > 10
    assert seen[-1] == ("valid", len(VALID), sum(map(len, VALID)))


def test_interrupted_preparation_is_redone_to_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    prepare(ListCorpus(), tokenizer, tmp_path / "whole", shard_tokens=500)
    # More and smaller shards than the second try, so leftovers would show.
    with pytest.raises(KeyboardInterrupt):
        prepare(ListCorpus(fail_after=3), tokenizer, tmp_path / "cut", shard_tokens=10)
    with pytest.raises(FileNotFoundError, match="manifest"):
        open_dataset(tmp_path / "cut")
    (tmp_path / "cut" / "train-notes.txt").write_text("not ours")
    prepare(ListCorpus(), tokenizer, tmp_path / "cut", shard_tokens=500)
    assert (tmp_path / "cut" / "train-notes.txt").read_text() == "not ours"
    (tmp_path / "cut" / "train-notes.txt").unlink()
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_finished_folder_is_reused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    made = prepare(ListCorpus(), tokenizer, tmp_path)
    again = ListCorpus()
    again.path = "moved"
    assert prepare(again, tokenizer, tmp_path) == made
    assert again.reads == 0


def test_another_data_set_is_never_overwritten(tokenizer: Tokenizer, tmp_path: Path) -> None:
    prepare(ListCorpus(), tokenizer, tmp_path)
    before = contents(tmp_path)
    for corpus, other in ((ListCorpus(TRAIN[1:]), tokenizer), (ListCorpus(), ByteTokenizer())):
        with pytest.raises(ValueError, match="holds another data set"):
            prepare(corpus, other, tmp_path)
    assert contents(tmp_path) == before


def test_each_pair_of_corpus_and_tokenizer_has_its_folder_name(tokenizer: Tokenizer) -> None:
    moved = ListCorpus()
    moved.path = "moved"
    names = [folder_name(corpus, tokenizer) for corpus in (ListCorpus(), moved, ListCorpus(TRAIN[1:]))]
    names.append(folder_name(ListCorpus(), ByteTokenizer()))
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert names[0].startswith("list-of-tales-bpe-")


def test_manifest_states_what_a_reader_needs(tokenizer: Tokenizer, tmp_path: Path) -> None:
    prepare(ListCorpus(), tokenizer, tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["schema"] == 2
    assert content["floor"] == 0.75
    assert content["synthetic"] is False
    assert content["corpus"]["kind"] == "list"
    assert content["tokenizer"] == {"kind": "bpe", "content_hash": tokenizer.content_hash(), "vocab_size": 300}
    assert isinstance(open_dataset(tmp_path).manifest, Manifest)
    assert open_dataset(tmp_path).tokenizer().content_hash() == tokenizer.content_hash()


def test_an_empty_split_is_an_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no documents in the 'valid' split"):
        prepare(ListCorpus(valid=[]), tokenizer, tmp_path)
    with pytest.raises(ValueError, match="shard_tokens is 0"):
        prepare(ListCorpus(), tokenizer, tmp_path, shard_tokens=0)


@pytest.fixture
def prepared(tokenizer: Tokenizer, tmp_path: Path) -> Dataset:
    prepare(ListCorpus(), tokenizer, tmp_path)
    return open_dataset(tmp_path)


def test_damage_is_found(prepared: Dataset) -> None:
    shard = prepared.folder / "train-00000.bin"
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    open_dataset(prepared.folder)
    with pytest.raises(ValueError, match=r"train-00000\.bin: sha256"):
        open_dataset(prepared.folder, verify=True)
    shard.write_bytes(good[:-2])
    with pytest.raises(ValueError, match=rf"{len(good) - 2} bytes, but the manifest says {len(good)}"):
        open_dataset(prepared.folder)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00000\.bin"):
        open_dataset(prepared.folder)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "not valid JSON"),
        ("[]", "not a manifest"),
        ('{"schema": 9}', "schema 9 is not among"),
        ("{}", "not a manifest"),
    ],
)
def test_malformed_manifest_is_one_clear_line(prepared: Dataset, content: str, problem: str) -> None:
    (prepared.folder / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=problem) as caught:
        open_dataset(prepared.folder)
    assert "manifest.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_stream_reads_across_shards_like_one_array() -> None:
    whole = np.arange(30, dtype=np.uint16)
    stream = TokenStream(np.split(whole, [1, 4, 5, 20]), np.array([0, 3, 30], dtype=np.uint64))
    assert len(stream) == 30
    for start in range(31):
        for stop in range(start, 31):
            assert stream.read(start, stop).tolist() == list(range(start, stop))
    assert stream.document(1).tolist() == list(range(3, 30))
    for call in (lambda: stream.read(0, 31), lambda: stream.read(-1, 3), lambda: stream.document(2)):
        with pytest.raises(IndexError):
            call()
