"""A preparation may be interrupted at any moment: it goes on from there and ends with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from moonlet.data import TextFileCorpus, encode, open_dataset
from moonlet.data.corpus import write_documents
from moonlet.data.prepare import prepare
from moonlet.text import ByteTokenizer

ROOT = Path(__file__).parents[2]
DOCUMENTS = [f"Story {i}. {'The fox slept. ' * (i % 17)}" for i in range(300)]
SHARD = 700


class Counting(ByteTokenizer):
    """Counts what it encodes, and stops after so many documents."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.encoded, self.stop_after = 0, stop_after

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        self.encoded += len(texts)
        if self.stop_after is not None and self.encoded > self.stop_after:
            raise KeyboardInterrupt
        return super().encode_batch(texts, allow_special=allow_special)


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "GROUP_BYTES", 300)
    monkeypatch.setattr("moonlet.data.prepare._JOURNAL_SECONDS", 0.0)
    # What survives a power cut cannot be tested here, and syncing thousands of times takes its time.
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def corpus(tmp_path: Path) -> TextFileCorpus:
    write_documents(DOCUMENTS, tmp_path / "t.txt")
    return TextFileCorpus(tmp_path / "t.txt")


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".prepare.lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def whole(corpus: TextFileCorpus, tmp_path: Path) -> dict[str, bytes]:
    prepare(corpus, ByteTokenizer(), tmp_path / "whole", shard_tokens=SHARD, workers=1)
    return contents(tmp_path / "whole")


@pytest.mark.parametrize("stop", [0, 1, 20, 40, 150, 250, 280, 295, 299])
def test_it_goes_on_where_it_was_and_ends_with_the_same_bytes(
    corpus: TextFileCorpus, whole: dict[str, bytes], tmp_path: Path, stop: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(corpus, Counting(stop), tmp_path / "cut", shard_tokens=SHARD, workers=1)
    second = Counting()
    prepare(corpus, second, tmp_path / "cut", shard_tokens=SHARD, workers=1)
    assert contents(tmp_path / "cut") == whole
    # Never more than a few groups are done twice.
    assert second.encoded <= len(DOCUMENTS) - stop + 60
    open_dataset(tmp_path / "cut", verify=True)


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_failure_at_any_sync_or_rename_loses_nothing(
    corpus: TextFileCorpus, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    name = call.removeprefix("os.")
    real = getattr(os, name)
    failures = 0
    for at in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89):
        left = [at]

        def sometimes(*arguments: object, left: list[int] = left) -> object:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, sometimes)
            try:
                prepare(corpus, ByteTokenizer(), tmp_path / "cut", shard_tokens=SHARD, workers=1)
            except KeyboardInterrupt:
                failures += 1
    prepare(corpus, ByteTokenizer(), tmp_path / "cut", shard_tokens=SHARD, workers=1)
    assert failures > 3
    assert contents(tmp_path / "cut") == whole


KILLED = """
import os, signal, sys
from pathlib import Path
from moonlet.data import TextFileCorpus, encode
import moonlet.data.prepare as module
from moonlet.text import ByteTokenizer
encode.GROUP_BYTES = 300
module._JOURNAL_SECONDS = 0.0
left = [int(sys.argv[3])]
def fsync(handle):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
module.prepare(TextFileCorpus(sys.argv[1]), ByteTokenizer(), Path(sys.argv[2]), shard_tokens=700)
"""


def test_killed_again_and_again_it_still_arrives_at_the_same_bytes(
    corpus: TextFileCorpus, whole: dict[str, bytes], tmp_path: Path
) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    deaths = 0
    while True:
        # Ever later, and never at the same place of the work.
        command = [sys.executable, "-c", KILLED, str(corpus.path), str(tmp_path / "cut"), str(50 + 190 * deaths)]
        code = subprocess.run(command, env=environment, check=False).returncode
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
        assert deaths < 20
    assert deaths >= 2
    found = {name: data for name, data in contents(tmp_path / "cut").items() if not name.endswith(".tmp")}
    assert found == whole


def test_another_corpus_tokenizer_or_shard_size_begins_anew(
    corpus: TextFileCorpus, whole: dict[str, bytes], tmp_path: Path
) -> None:
    write_documents(DOCUMENTS[5:], tmp_path / "other.txt")
    for start in (TextFileCorpus(tmp_path / "other.txt"), SHARD), (corpus, 90):
        with pytest.raises(KeyboardInterrupt):
            prepare(start[0], Counting(150), tmp_path / "cut", shard_tokens=start[1], workers=1)
        prepare(corpus, ByteTokenizer(), tmp_path / "cut", shard_tokens=SHARD, workers=1)
        assert contents(tmp_path / "cut") == whole
        (tmp_path / "cut" / "manifest.json").unlink()


@pytest.mark.parametrize("damage", ["journal", "shard gone", "shard short", "side file short", "not json"])
def test_what_the_journal_cannot_vouch_for_is_made_anew(
    corpus: TextFileCorpus, whole: dict[str, bytes], tmp_path: Path, damage: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(corpus, Counting(150), tmp_path / "cut", shard_tokens=SHARD, workers=1)
    journal, shard = tmp_path / "cut" / "journal.json", tmp_path / "cut" / "train-00000.bin"
    if damage == "journal":
        content = json.loads(journal.read_text())
        content["splits"]["train"]["surprise"] = 1
        journal.write_text(json.dumps(content))
    elif damage == "not json":
        journal.write_text("{")
    elif damage == "shard gone":
        shard.unlink()
    else:
        path = shard if damage == "shard short" else tmp_path / "cut" / "train-bytes.bin"
        path.write_bytes(path.read_bytes()[:-8])
    prepare(corpus, ByteTokenizer(), tmp_path / "cut", shard_tokens=SHARD, workers=1)
    assert contents(tmp_path / "cut") == whole
