"""Turn a corpus into token shards: every document as [BOS] ids [EOS], one after another, little-endian.

    train-00000.bin ...  train-documents.bin  valid-00000.bin ...  valid-documents.bin  tokenizer/  manifest.json

The manifest comes last. A folder without one was interrupted: its shards are removed and made anew. A folder whose
manifest names the same corpus and tokenizer is used as it is. A folder that holds another data set is never
overwritten: that is an error, and `folder_name` names a folder for each pair of corpus and tokenizer, for callers who
want none.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from moonlet.data.corpus import SPLITS, Corpus
from moonlet.data.dataset import TOKENIZER_FOLDER, open_dataset
from moonlet.data.manifest import (
    MANIFEST_FILE,
    FileInfo,
    Manifest,
    SplitInfo,
    describe_tokenizer,
    same_data,
    without_paths,
)
from moonlet.data.stream import Tokens
from moonlet.text.atomic import sync_folder
from moonlet.text.tokenizer import Tokenizer, hash_content

SHARD_TOKENS = 2**26
# Documents are encoded in groups of about this many characters: enough to feed all cores, little enough to stream.
_GROUP_CHARACTERS = 2**22

Progress = Callable[[str, int, int], None]


def prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    shard_tokens: int = SHARD_TOKENS,
    progress: Progress | None = None,
) -> Manifest:
    """Prepare `corpus` into `folder`, or find it prepared there.

    Args:
        corpus: the documents.
        tokenizer: their encoding; ids below 65,536 are stored as uint16, else uint32. Special names in a document's
            text stay text.
        folder: made when missing. Safe against a second process that prepares the same folder: one waits.
        shard_tokens: tokens a shard file.
        progress: called with (split, documents so far, UTF-8 bytes so far) after each group of documents.

    Returns:
        The manifest.

    Raises:
        ValueError: the folder holds another data set or a damaged one, or a split has no documents.
    """
    if shard_tokens <= 0:
        raise ValueError(f"shard_tokens is {shard_tokens}; it must be above 0")
    from filelock import FileLock

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".prepare.lock"):
        facts = corpus.describe()
        if (folder / MANIFEST_FILE).exists():
            return _reuse(folder, facts, tokenizer)
        _remove_unfinished(folder)
        dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        splits = {
            split: _prepare_split(corpus, split, tokenizer, folder, dtype, shard_tokens, progress) for split in SPLITS
        }
        tokenizer.save(folder / TOKENIZER_FOLDER)
        manifest = Manifest(
            name=corpus.name,
            synthetic=corpus.synthetic,
            corpus=facts,
            tokenizer=describe_tokenizer(tokenizer),
            dtype=dtype,
            floor=corpus.floor(),
            splits=splits,
        )
        sync_folder(folder)
        manifest.write(folder)
        return open_dataset(folder).manifest


def folder_name(corpus: Corpus, tokenizer: Tokenizer) -> str:
    """A folder name of its own for each pair of corpus and tokenizer: "tinystories-bpe-1f3a..."."""
    facts = without_paths(corpus.describe())
    plain = re.sub(r"[^a-z0-9]+", "-", Path(corpus.name).stem.lower()).strip("-")
    return f"{plain}-{tokenizer.kind}-{hash_content({'corpus': facts, 'tokenizer': tokenizer.content_hash()})[:12]}"


def _reuse(folder: Path, facts: dict[str, object], tokenizer: Tokenizer) -> Manifest:
    manifest = open_dataset(folder).manifest
    if not same_data(manifest, facts, tokenizer):
        raise ValueError(
            f"{folder} holds another data set ({manifest.name}, {manifest.tokenizer.get('kind')} tokenizer "
            f"{str(manifest.tokenizer.get('content_hash'))[:12]}, not this corpus with {tokenizer.kind} "
            f"{tokenizer.content_hash()[:12]}); give another folder, or delete this one"
        )
    return manifest


def _remove_unfinished(folder: Path) -> None:
    """Remove our own files of an interrupted preparation; whatever else lies in the folder is not ours."""
    for split in SPLITS:
        for path in [*folder.glob(f"{split}-[0-9][0-9][0-9][0-9][0-9].bin"), folder / f"{split}-documents.bin"]:
            path.unlink(missing_ok=True)


def _prepare_split(
    corpus: Corpus,
    split: str,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: str,
    shard_tokens: int,
    progress: Progress | None,
) -> SplitInfo:
    documents, size, tokens = 0, 0, 0
    with (
        _Writer(folder, split + "-{:05d}.bin", dtype, shard_tokens) as shards,
        _Writer(folder, split + "-documents.bin", "uint64", None) as offsets,
    ):
        offsets.write(np.zeros(1, dtype="<u8"))
        for texts in _groups(corpus.documents(split)):
            stream, ends = _encode(tokenizer, texts, dtype)
            shards.write(stream)
            offsets.write(ends + np.uint64(tokens))
            tokens += len(stream)
            documents += len(texts)
            size += sum(len(text.encode("utf-8")) for text in texts)
            if progress is not None:
                progress(split, documents, size)
    if documents == 0:
        raise ValueError(f"{corpus.name}: no documents in the {split!r} split; give more text or another split")
    return SplitInfo(documents, tokens, size, tuple(shards.files), offsets.files[0])


def _groups(documents: Iterator[str]) -> Iterator[list[str]]:
    group: list[str] = []
    characters = 0
    for document in documents:
        group.append(document)
        characters += len(document)
        if characters >= _GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _encode(tokenizer: Tokenizer, texts: list[str], dtype: str) -> tuple[Tokens, Tokens]:
    """The documents as one array of tokens, and where each ends in it (uint64)."""
    encoded = tokenizer.encode_batch(texts)
    ends = np.cumsum([len(ids) + 2 for ids in encoded], dtype=np.uint64)
    stream = np.empty(int(ends[-1]), dtype=np.dtype(dtype).newbyteorder("<"))
    start = 0
    for ids in encoded:
        stop = start + len(ids) + 2
        stream[start] = tokenizer.bos_id
        stream[start + 1 : stop - 1] = ids
        stream[stop - 1] = tokenizer.eos_id
        start = stop
    return stream, ends


class _Writer:
    """Writes one stream of numbers into files of `limit` numbers each, hashing as it goes.

    The files take their final names at once: before the manifest exists nothing reads them.
    """

    def __init__(self, folder: Path, pattern: str, dtype: str, limit: int | None) -> None:
        self.files: list[FileInfo] = []
        self._folder, self._pattern, self._limit = folder, pattern, limit
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._file: BinaryIO | None = None
        self._count = 0
        self._hash = hashlib.sha256()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, numbers: Tokens) -> None:
        """Append `numbers` [n], rolling over to the next file where one is full."""
        while len(numbers):
            if self._file is None:
                self._open()
            room = len(numbers) if self._limit is None else self._limit - self._count
            data = numbers[:room].astype(self._dtype, copy=False).tobytes()
            assert self._file is not None
            self._file.write(data)
            self._hash.update(data)
            self._count += len(numbers[:room])
            numbers = numbers[room:]
            if self._count == self._limit:
                self._close()

    def _open(self) -> None:
        self._name = self._pattern.format(len(self.files))
        self._file = (self._folder / self._name).open("wb")
        self._count, self._hash = 0, hashlib.sha256()

    def _close(self) -> None:
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self.files.append(FileInfo(self._name, self._count, self._hash.hexdigest()))
