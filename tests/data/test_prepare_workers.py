"""Encoding on several processes: the same bytes for any number, and an error in one is an error of the whole."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from moonlet.data import encode, pool
from moonlet.data.encode import encode_group, grouped
from moonlet.data.pool import encode_all
from moonlet.data.prepare import prepare
from moonlet.data.worker import FAILED, identity, read_numbers, serve, write_numbers
from moonlet.text import ByteTokenizer, train_bpe
from moonlet.text.tokenizer import Tokenizer

DOCUMENTS = [f"Tale {i}: the fox \U0001f98a met [EOS] number {i * i}.\n\n{'End. ' * (i % 23)}" for i in range(400)]


class Listed:
    """A corpus in memory."""

    name = "tales"
    synthetic = False

    def documents(self, split: str) -> Iterator[str]:
        return iter(DOCUMENTS if split == "train" else DOCUMENTS[:9])

    def describe(self) -> dict[str, object]:
        return {"kind": "list"}

    def floor(self) -> float | None:
        return None


class Shifted(ByteTokenizer):
    """A class that no folder reads back."""

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        return [ids[::-1] for ids in super().encode_batch(texts)]


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "GROUP_BYTES", 500)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("tokenizer", [train_bpe(DOCUMENTS, 300), ByteTokenizer()], ids=["bpe", "byte"])
def test_any_number_of_workers_gives_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    started = []
    real = pool.subprocess.Popen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool.subprocess, "Popen", lambda *a, **o: started.append(1) or real(*a, **o))
        for workers in (1, 2, 3):
            prepare(Listed(), tokenizer, tmp_path / str(workers), shard_tokens=1500, workers=workers)
    assert len(started) == 2 + 3
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")


def test_a_tokenizer_that_cannot_be_read_back_is_used_in_this_process(tmp_path: Path) -> None:
    for workers in (1, 2):
        prepare(Listed(), Shifted(), tmp_path / str(workers), workers=workers)
    prepare(Listed(), ByteTokenizer(), tmp_path / "plain", workers=1)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert contents(tmp_path / "1")["train-00000.bin"] != contents(tmp_path / "plain")["train-00000.bin"]


def test_a_little_text_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.subprocess, "Popen", None)
    assert len(list(encode_all(ByteTokenizer(), grouped(DOCUMENTS[:20]), "uint16", workers=4))) > 1


def test_a_worker_that_dies_is_one_clear_line_and_no_process_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = []
    real = pool.subprocess.Popen

    def remember(*arguments: object, **options: object) -> object:
        processes.append(real(*arguments, **options))  # type: ignore[call-overload]
        return processes[-1]

    monkeypatch.setattr(pool.subprocess, "Popen", remember)

    def documents() -> Iterator[str]:
        for i, document in enumerate(DOCUMENTS * 3):
            if i == 300:
                os.kill(processes[0].pid, signal.SIGKILL)
            yield document

    with pytest.raises(ValueError, match=r"worker process .* has ended \(exit code -9\)") as caught:
        list(encode_all(ByteTokenizer(), grouped(documents()), "uint16", workers=2))
    assert "\n" not in str(caught.value)
    assert [process.poll() is not None for process in processes] == [True, True]


def test_stopping_early_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = []
    real = pool.subprocess.Popen
    monkeypatch.setattr(pool.subprocess, "Popen", lambda *a, **o: processes.append(real(*a, **o)) or processes[-1])
    encoded = encode_all(ByteTokenizer(), grouped(DOCUMENTS), "uint16", workers=2)
    next(encoded)
    encoded.close()
    assert [process.poll() is not None for process in processes] == [True, True]


def test_only_a_few_groups_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    read = [0]

    def documents() -> Iterator[str]:
        for document in DOCUMENTS:
            read[0] += len(document.encode())
            yield document

    ahead = []
    done = 0
    for group in encode_all(ByteTokenizer(), grouped(documents()), "uint16", workers=2):
        done += int(group.sizes.sum())
        ahead.append(read[0] - done)
    assert max(ahead) < 9 * encode.GROUP_BYTES


def test_a_worker_answers_groups_and_tells_errors() -> None:
    class Choosy(ByteTokenizer):
        def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
            if "bad" in texts:
                raise ValueError("no bad text")
            return super().encode_batch(texts)

    source, sink = io.BytesIO(), io.BytesIO()
    for texts in ([b"good", b""], [b"bad"], [b"again"]):
        write_numbers(source, np.array([len(text) for text in texts], dtype=np.uint32))
        source.write(b"".join(texts))
    source.seek(0)
    tokenizer = Choosy()
    serve(tokenizer, "uint16", source, sink)
    sink.seek(0)
    assert json.loads(sink.readline()) == identity(tokenizer)
    assert read_numbers(sink).tolist() == [6, 2]
    assert np.frombuffer(sink.read(16), "<u2").tolist() == encode_group(tokenizer, [b"good", b""], "uint16")[0].tolist()
    failed = read_numbers(sink).tolist()
    assert failed[0] == FAILED
    assert sink.read(failed[1]) == b"no bad text"
    assert read_numbers(sink).tolist() == [7]


def test_numbers_of_workers_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers is 0"):
        prepare(Listed(), ByteTokenizer(), tmp_path, workers=0)
    assert pool.cores() >= 1
