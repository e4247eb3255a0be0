"""Open a folder of token shards, and check that it is what its manifest says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moonlet.data.corpus import check_split
from moonlet.data.manifest import DTYPES, FileInfo, Manifest, read_manifest
from moonlet.data.stream import TokenStream
from moonlet.text.tokenizer import Tokenizer

TOKENIZER_FOLDER = "tokenizer"


@dataclass(frozen=True)
class Dataset:
    """A prepared data set: the folder and its manifest. Make one with `open_dataset`."""

    folder: Path
    manifest: Manifest

    def tokens(self, split: str) -> TokenStream:
        """The token stream of "train" or "valid", memory-mapped."""
        check_split(split)
        info = self.manifest.splits[split]
        dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        shards = [np.memmap(self.folder / shard.file, dtype=dtype, mode="r") for shard in info.shards]
        offsets = np.memmap(self.folder / info.offsets.file, dtype="<u8", mode="r")
        if info.sizes is not None:
            return TokenStream(shards, offsets, np.memmap(self.folder / info.sizes.file, dtype="<u4", mode="r"))
        return TokenStream(shards, offsets, _DecodedSizes(self, TokenStream(shards, offsets)))

    def tokenizer(self) -> Tokenizer:
        """The tokenizer it was prepared with, which lies in the folder."""
        from moonlet.text import load

        return load(self.folder / TOKENIZER_FOLDER)


class _DecodedSizes:
    """The bytes of documents that schema 1 did not count; its tokenizers were exact, so decoding tells them."""

    def __init__(self, dataset: Dataset, stream: TokenStream) -> None:
        self._dataset, self._stream = dataset, stream
        self._tokenizer: Tokenizer | None = None

    def __getitem__(self, index: int) -> int:
        self._tokenizer = self._tokenizer or self._dataset.tokenizer()
        return len(self._tokenizer.decode_bytes(self._stream.document(index)[1:-1].tolist()))


def open_dataset(folder: Path, *, verify: bool = False) -> Dataset:
    """Open a prepared data set.

    Args:
        folder: where `prepare` wrote it.
        verify: also read every byte and compare the sha256 of each file; sizes are compared always.

    Raises:
        FileNotFoundError: no manifest, or a file that it names is missing.
        ValueError: a file has another size or another hash; names the file and both.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for split in manifest.splits.values():
        for shard in split.shards:
            _check_file(folder, shard, DTYPES[manifest.dtype], verify)
        _check_file(folder, split.offsets, 8, verify)
        if split.sizes is not None:
            _check_file(folder, split.sizes, 4, verify)
    return Dataset(folder, manifest)


def _check_file(folder: Path, info: FileInfo, width: int, verify: bool) -> None:
    path = folder / info.file
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: missing, though the manifest names it; delete the folder and prepare it again"
        )
    size = path.stat().st_size
    if size != info.count * width:
        raise ValueError(
            f"{path}: {size} bytes, but the manifest says {info.count * width}; delete the folder and prepare it again"
        )
    if verify:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != info.sha256:
            raise ValueError(
                f"{path}: sha256 {found[:12]}, but the manifest says {info.sha256[:12]}; "
                f"delete the folder and prepare it again"
            )
