"""The files of one split while they are written, and how far they have come.

    {split}-00000.bin, ...   tokens, `shard_tokens` a file but for the last
    {split}-documents.bin    uint64: where each document starts in the tokens, then the end of the last
    {split}-bytes.bin        uint32: UTF-8 bytes of each document's text

All of it follows from three numbers, documents, tokens and bytes: an interrupted split goes on from the last such
numbers that were safe on disk, after whatever lies behind them in the files has been cut off.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from moonlet.data.encode import Encoded
from moonlet.data.manifest import DTYPES, FileInfo, SplitInfo

_CHUNK = 2**22


@dataclass(frozen=True)
class Reached:
    """How far a split has come: whole documents, their tokens and bytes, and the shards that are full."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    shards: tuple[FileInfo, ...] = ()
    done: bool = False


def shard_name(split: str, index: int) -> str:
    """The file name of a shard."""
    return f"{split}-{index:05d}.bin"


def remove_shards(folder: Path, split: str) -> None:
    """Remove our own files of a split; whatever else lies in the folder is not ours."""
    shards = folder.glob(f"{split}-[0-9][0-9][0-9][0-9][0-9].bin")
    for path in [*shards, folder / f"{split}-documents.bin", folder / f"{split}-bytes.bin"]:
        path.unlink(missing_ok=True)


def can_go_on(folder: Path, split: str, reached: Reached, dtype: str) -> bool:
    """Whether the files of a split hold all that was reached."""
    width = DTYPES[dtype]
    rest = reached.tokens - sum(shard.count for shard in reached.shards)
    needed = {shard.file: shard.count * width for shard in reached.shards}
    if rest:
        needed[shard_name(split, len(reached.shards))] = rest * width
    if reached.documents:
        needed[f"{split}-documents.bin"] = 8 * (reached.documents + 1)
        needed[f"{split}-bytes.bin"] = 4 * reached.documents
    files = {name: folder / name for name in needed}
    return all(path.is_file() and path.stat().st_size >= needed[name] for name, path in files.items())


class SplitWriter:
    """Writes a split from where it stands.

    Args:
        folder: where its files lie.
        split: its name.
        dtype: of the tokens, "uint16" or "uint32".
        shard_tokens: tokens a shard file.
        reached: how far the files in the folder have come (`can_go_on`); what lies behind it is cut off.
    """

    def __init__(self, folder: Path, split: str, dtype: str, shard_tokens: int, reached: Reached) -> None:
        self.documents, self.tokens, self.bytes = reached.documents, reached.tokens, reached.bytes
        self._shards = [shard.file for shard in reached.shards]
        self._full = list(reached.shards)
        self._folder, self._split, self._dtype, self._limit = folder, split, dtype, shard_tokens
        partial = reached.tokens - sum(shard.count for shard in reached.shards)
        self._shard = _File(folder / shard_name(split, len(self._full)), dtype, partial) if partial else None
        self._offsets = _File(folder / f"{split}-documents.bin", "uint64", reached.documents and reached.documents + 1)
        self._sizes = _File(folder / f"{split}-bytes.bin", "uint32", reached.documents)
        if not self._offsets.count:
            self._offsets.write(np.zeros(1, dtype=np.uint64))

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._shard, self._offsets, self._sizes):
            if file is not None:
                file.close()

    def write(self, encoded: Encoded) -> None:
        """Append a group of documents."""
        ends = np.cumsum(encoded.lengths, dtype=np.uint64) + np.uint64(self.tokens)
        self._offsets.write(ends)
        self._sizes.write(encoded.sizes)
        tokens = encoded.tokens
        while len(tokens):
            if self._shard is None:
                self._shard = _File(self._folder / shard_name(self._split, len(self._full)), self._dtype, 0)
            room = self._limit - self._shard.count
            self._shard.write(tokens[:room])
            tokens = tokens[room:]
            if self._shard.count == self._limit:
                self._close_shard()
        self.tokens += len(encoded.tokens)
        self.documents += len(encoded.lengths)
        self.bytes += int(encoded.sizes.sum(dtype=np.uint64))

    def sync(self) -> Reached:
        """Bring all that was written to disk, and say how far that is."""
        for file in (self._shard, self._offsets, self._sizes):
            if file is not None:
                file.sync()
        return Reached(self.documents, self.tokens, self.bytes, tuple(self._full))

    def finish(self) -> Reached:
        """Close the last shard, short as it may be: the split is done."""
        if self._shard is not None:
            self._close_shard()
        self.sync()
        return Reached(self.documents, self.tokens, self.bytes, tuple(self._full), done=True)

    def info(self) -> SplitInfo:
        """What the manifest says of the split, after `finish`."""
        return SplitInfo(
            self.documents, self.tokens, self.bytes, tuple(self._full), self._offsets.info(), self._sizes.info()
        )

    def _close_shard(self) -> None:
        assert self._shard is not None
        self._shard.sync()
        self._full.append(self._shard.info())
        self._shard.close()
        self._shard = None


class _File:
    """One file of numbers, hashed while it is written; it keeps the first `count` numbers that lie in it.

    It has its final name from the beginning: before the manifest exists nothing reads it.
    """

    def __init__(self, path: Path, dtype: str, count: int) -> None:
        self.path, self.count = path, count
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._hash = hashlib.sha256()
        self._file: BinaryIO = path.open("r+b" if count else "wb")
        self._file.truncate(count * self._dtype.itemsize)
        while data := self._file.read(_CHUNK) if count else b"":
            self._hash.update(data)
        self._file.seek(0, os.SEEK_END)

    def write(self, numbers: NDArray[Any]) -> None:
        data = numbers.astype(self._dtype, copy=False).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self.count += len(numbers)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def info(self) -> FileInfo:
        return FileInfo(self.path.name, self.count, self._hash.hexdigest())

    def close(self) -> None:
        self._file.close()
