"""A GGUF's header is read as it was written, and a damaged one is refused in a line, soon and without much memory."""

from __future__ import annotations

import json
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moonlet.cli.main import app
from moonlet.hub.gguf.read import ArrayStart, is_gguf, read_header
from moonlet.hub.gguf.write import write_gguf
from moonlet.model.model import CausalLM
from moonlet.text.byte import ByteTokenizer
from tests.cli.command import moonlet
from tests.hub.gguf.llama import needs_gguf


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def entry(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return text(name) + axes + struct.pack("<IQ", kind, offset)


def small(tensors: list[bytes], pairs: list[bytes] | None = None, weights: int = 256, version: int = 3) -> bytes:
    """A file by hand: weights are zeros."""
    pairs = [pair("general.name", 8, text("moon"))] if pairs is None else pairs
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32 + weights)


@pytest.fixture
def file(tiny_model: Callable[..., CausalLM], tmp_path: Path) -> Path:
    return write_gguf(tiny_model(vocab_size=280, hidden_size=64), ByteTokenizer(), tmp_path / "m.gguf", "Q8_0").path


@needs_gguf
def test_metadata_tensors_and_places_are_what_the_package_reads(file: Path) -> None:
    import gguf

    header, peer = read_header(file), gguf.GGUFReader(file)
    assert [(t.name, list(t.shape), t.type, t.start, t.size) for t in header.tensors] == [
        (t.name, [int(n) for n in reversed(t.shape)], t.tensor_type.name, t.data_offset, t.n_bytes)
        for t in peer.tensors
    ]
    fields = {name: field.contents() for name, field in peer.fields.items() if not name.startswith("GGUF.")}
    assert list(header.metadata) == list(fields)
    for key, value in header.metadata.items():
        if isinstance(value, ArrayStart):
            assert value.length == len(fields[key])
            assert value.items == fields[key][:8]
        else:
            assert value == fields[key], key
    last = max(header.tensors, key=lambda t: t.start)
    assert last.start + last.size <= file.stat().st_size
    assert sum(size for _, _, size in header.by_type().values()) == sum(t.size for t in header.tensors)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "does not begin with GGUF"),
        (b"GGML" + bytes(40), "does not begin with GGUF"),
        (small([], version=1), "version 1"),
        (small([])[:45], "ends at byte 45"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0) + bytes(64), "tensors, more than the file can hold"),
        (small([], [text("a") + struct.pack("<I", 77)]), "type 77"),
        (small([], [pair("a", 9, struct.pack("<IQ", 4, 2**61))]), "items of an array"),
        (small([], [pair("a", 9, struct.pack("<IQ", 9, 1) + bytes(12))]), "an array holds type 9"),
        (small([], [pair("a", 4, bytes(4)), pair("a", 4, bytes(4))]), "given twice"),
        (small([], [pair("a", 8, struct.pack("<Q", 2**62))]), "a text of"),
        (small([], [pair("a", 8, struct.pack("<Q", 2) + b"\xff\xff")]), "not UTF-8"),
        (small([], [pair("general.alignment", 4, bytes(4))]), "general.alignment is 0"),
        (small([entry("w", (2,) * 5, 0, 0)]), "5 axes"),
        (small([entry("w", (2, 3), 99, 0)]), "type 99"),
        (small([entry("w", (2, 3), 8, 0)]), "no multiple of Q8_0's 32"),
        (small([entry("w", (2**40, 2**40), 0, 0)]), "the file ends at"),
        (small([entry("w", (4, 4), 0, 1)]), "lies at byte"),
        (small([entry("w", (4, 4), 0, 0), entry("v", (4, 4), 0, 32)]), "overlap"),
        (small([entry("w", (4,), 0, 0), entry("w", (4,), 0, 32)]), "given twice"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=said) as error:
        read_header(file)
    assert "\n" not in str(error.value)


def test_a_file_by_hand_is_read(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(small([entry("w", (4, 4), 0, 0), entry("v", (2, 32), 2, 64)]))
    header = read_header(file)
    assert header.metadata == {"general.name": "moon"}
    assert header.by_type() == {"F32": (1, 16, 64), "Q4_0": (1, 64, 36)}
    assert is_gguf(file)
    assert not is_gguf(tmp_path)


def mutated(whole: bytes, end: int, draw: random.Random) -> bytes:
    """With one to three changes within the first `end` bytes: a byte, a number, some or all further bytes missing."""
    data = bytearray(whole)
    for _ in range(draw.randrange(1, 4)):
        at, how = draw.randrange(min(end, len(data))), draw.randrange(4)
        if how == 0:
            data[at] = draw.randrange(256)
        elif how == 1:
            data[at : at + 8] = struct.pack("<Q", draw.choice([0, 1, 2**31, 2**63, 2**64 - 1]))
        elif how == 2:
            del data[at : at + draw.randrange(1, 40)]
        else:
            del data[at + 40 :]
    return bytes(data)


def refusal(file: Path) -> str | None:
    try:
        read_header(file)
    except ValueError as error:
        return str(error)
    return None


@needs_gguf
def test_300_mutated_headers_are_read_or_refused_within_two_seconds(file: Path, tmp_path: Path) -> None:
    whole, draw, other = file.read_bytes(), random.Random(0), tmp_path / "mutated.gguf"
    end = min(t.start for t in read_header(file).tensors)
    refusals: list[str | None] = []
    seconds = 0.0
    for _ in range(300):
        other.write_bytes(mutated(whole, end, draw))
        begin = time.process_time()
        refusals.append(refusal(other))
        seconds += time.process_time() - begin
    assert sum(text is not None for text in refusals) > 150
    assert all(text is None or "\n" not in text for text in refusals)
    assert seconds < 2


@needs_gguf
def test_a_mutated_header_takes_no_more_memory_than_the_file(file: Path, tmp_path: Path) -> None:
    whole, draw, other = file.read_bytes(), random.Random(1), tmp_path / "mutated.gguf"
    end = min(t.start for t in read_header(file).tensors)
    for _ in range(20):
        other.write_bytes(mutated(whole, end, draw))
        tracemalloc.start()
        refusal(other)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < len(whole) + 2**20


@needs_gguf
def test_inspect_shows_metadata_and_types_and_a_damaged_file_is_one_line(file: Path) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(file)])
    assert shown.exit_code == 0, shown.output
    for part in ("deepseek2", "kimi-k2", "Q8_0", "F32", "280: [BOS], [EOS]"):
        assert part in shown.output
    values = json.loads(CliRunner().invoke(app, ["inspect", str(file), "--json"]).output)
    assert values["metadata"]["general.architecture"] == "deepseek2"
    assert sum(kind["bytes"] for kind in values["types"].values()) == sum(t["bytes"] for t in values["tensors"])
    file.write_bytes(file.read_bytes()[:100])
    done = moonlet("inspect", file)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
