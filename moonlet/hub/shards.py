"""Writing a Hugging Face directory tensor by tensor: safetensors files of a size, their index, and what lies beside.

    8 bytes, little endian: N    N bytes of JSON    the tensors' bytes, one behind the other, without gaps

What a file will hold is known before any tensor is made, so the header comes first and every tensor goes to its place
as it arrives: writing takes one tensor's memory, whatever the size of the files. Up to `max_shard_bytes` there is one
file, `model.safetensors`; beyond, `model-00001-of-0000N.safetensors` and `model.safetensors.index.json`.

Everything is written and synced under temporary names first. Then, where a model is replaced by another, its
config.json goes away, so that nobody reads half of each; the new files take their names, old weights that they do not
replace are removed, and config.json comes last. A folder without it is no model.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from moonlet.hub.source import DTYPES, INDEX_FILE, SINGLE_FILE
from moonlet.text.atomic import sync_folder

CONFIG_FILE = "config.json"
SHARD_BYTES = 5_000_000_000

# In safetensors' order: files begin with the widest numbers, so that every tensor is aligned.
_WIDEST_FIRST = (
    "I64", "F64", "F32", "I32", "BF16", "F16", "I16", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL",
)  # fmt: skip
_ORDER = {word: place for place, word in enumerate(_WIDEST_FIRST)}
_WORDS = {DTYPES[word]: word for word in _WIDEST_FIRST}
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors$")

Progress = Callable[[int], object]


class Planned(NamedTuple):
    """A tensor that will be written: its name, its dtype in safetensors' words, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


def word(dtype: torch.dtype) -> str:
    """What safetensors calls a dtype."""
    if dtype not in _WORDS:
        raise ValueError(f"tensors of {dtype} cannot be written; known: {', '.join(map(str, _WORDS))}")
    return _WORDS[dtype]


def write_folder(
    folder: Path,
    planned: Sequence[Planned],
    tensors: Iterable[tuple[str, Tensor]],
    files: Mapping[str, str | Path],
    max_shard_bytes: float = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write a model's files into `folder`, so that a reader finds the old model there, the new one, or none.

    Args:
        planned: every tensor, in the order in which `tensors` gives them.
        files: config.json and others that belong beside the weights, by their names: a text, or a file to copy.
        max_shard_bytes: tensors' bytes in one file; a tensor that is larger has a file of its own.
        progress: called with the number of bytes that were written.

    Raises:
        ValueError: two tensors of one name, or a limit that is no size.
        OSError: the disk is full, or the folder cannot be written; what was there is then left as it was.
    """
    if not max_shard_bytes > 0:
        raise ValueError(f"a shard of at most {max_shard_bytes} bytes holds nothing; give a size like 5e9")
    twice = next((a for a, b in pairwise(sorted(tensor.name for tensor in planned)) if a == b), None)
    if twice is not None:
        raise ValueError(f"{twice} would be written twice")
    shards = _split(planned, max_shard_bytes)
    count = len(shards)
    weights = [SINGLE_FILE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    beside = dict(files)
    if count > 1:
        weight_map = {tensor.name: file for file, shard in zip(weights, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": sum(t.nbytes for t in planned)}, "weight_map": weight_map}
        beside[INDEX_FILE] = json.dumps(index, indent=2, sort_keys=True) + "\n"
    # config.json makes a model of the folder.
    names = sorted([*weights, *beside], key=lambda name: name == CONFIG_FILE)
    with _staged(folder, names) as paths:
        arriving = iter(tensors)
        for file, shard in zip(weights, shards, strict=True):
            with _synced(paths[file]) as out:
                _write_shard(out, shard, arriving, progress)
        assert next(arriving, None) is None, "more tensors than planned"
        for name, content in beside.items():
            with _synced(paths[name]) as out:
                if isinstance(content, Path):
                    with content.open("rb") as copied:
                        shutil.copyfileobj(copied, out)
                else:
                    out.write(content.encode("utf-8"))


def _split(planned: Sequence[Planned], limit: float) -> list[list[Planned]]:
    """Files in order, each as full as the next tensor lets it be; one at least."""
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in planned:
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _write_shard(
    out: BinaryIO, shard: Sequence[Planned], arriving: Iterator[tuple[str, Tensor]], progress: Progress | None
) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    begins: dict[str, int] = {}
    end = 0
    for name, dtype, shape in sorted(shard, key=lambda t: (_ORDER[t.dtype], t.name)):
        begins[name], end = end, end + Planned(name, dtype, shape).nbytes
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begins[name], end]}
    content = json.dumps(header, separators=(",", ":")).encode("utf-8")
    content += b" " * (-len(content) % 8)
    start = 8 + len(content)
    out.write(len(content).to_bytes(8, "little") + content)
    out.truncate(start + end)
    for expected in shard:
        name, tensor = next(arriving)
        found = Planned(name, word(tensor.dtype), tuple(tensor.shape))
        assert found == expected, (found, expected)
        out.seek(start + begins[name])
        # numpy lends the memory; it does not know every dtype, so it lends bytes.
        out.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        if progress is not None:
            progress(expected.nbytes)


@contextmanager
def _synced(path: Path) -> Iterator[BinaryIO]:
    """A new file at `path` to write, on the disk when the block ends."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _staged(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Temporary paths for files of `folder`, which take their names, in this order, when the block ends well."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f".{name}.{os.getpid()}.tmp" for name in names}
    try:
        yield paths
        _close_door(folder, paths)
        for name, path in paths.items():
            os.replace(path, folder / name)
    except BaseException:
        for path in paths.values():
            path.unlink(missing_ok=True)
        raise
    sync_folder(folder)


def _close_door(folder: Path, paths: Mapping[str, Path]) -> None:
    """Where an old model and the new files would not fit together for a moment, make it none, and take away its
    weights that the new files do not replace."""
    config = folder / CONFIG_FILE
    old = {path for path in folder.iterdir() if _WEIGHTS.match(path.name) or path.name == INDEX_FILE}
    # One file for one of the same configuration is no moment.
    alike = {path.name for path in old} | {SINGLE_FILE} == {SINGLE_FILE} and SINGLE_FILE in paths
    if not old or (alike and config.is_file() and config.read_bytes() == paths[CONFIG_FILE].read_bytes()):
        return
    config.unlink(missing_ok=True)
    sync_folder(folder)
    # Without its index nobody takes one shard for another's.
    for path in sorted(old, key=lambda path: path.name != INDEX_FILE):
        if path.name not in paths or path.name == INDEX_FILE:
            path.unlink()
