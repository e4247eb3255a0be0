"""A corpus: documents, in order, in two splits that share none; and the plainest one, text files of your own.

The protocol is small so that anything can follow it: stream the documents of a split, say in JSON what they are, and
say how well any model could do, where that is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

from moonlet.data.documents import SEPARATOR, check_split_by, file_documents, read_documents, write_documents
from moonlet.data.expected import expected_size
from moonlet.data.files import find_files, format_of
from moonlet.data.fingerprint import file_facts
from moonlet.data.split import training_part, validation_part

__all__ = ["SEPARATOR", "SPLITS", "Corpus", "TextFileCorpus", "check_split", "read_documents", "write_documents"]

SPLITS = ("train", "valid")


@runtime_checkable
class Corpus(Protocol):
    """The protocol that `prepare` reads from."""

    name: str
    """What a person calls it: "story world (synthetic)", or a file name."""
    synthetic: bool
    """Whether a program made the text; every result says so."""

    def documents(self, split: str) -> Iterator[str]:
        """The documents of "train" or "valid", streamed, the same ones in the same order each time."""
        ...

    def describe(self) -> dict[str, object]:
        """JSON-able facts for the manifest (sha256 of files, seed, how it is split). Two corpora with equal facts,
        "path" aside, hold the same documents."""
        ...

    def floor(self) -> float | None:
        """Bits per UTF-8 byte of the validation documents that no model can beat; None where nobody knows."""
        ...


def check_split(split: str) -> None:
    """Raise ValueError unless `split` is one of the two names."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {' and '.join(map(repr, SPLITS))}")


class TextFileCorpus:
    """Text files: one, a folder or a glob of .txt, .jsonl and .parquet (see `moonlet.data.documents`).

    With no `valid` the documents are split by the hash of their text (see `moonlet.data.split`).

    Args:
        path: what to read; see `moonlet.data.files.find_files`.
        valid: other files that hold the validation documents; then all of `path` trains.
        valid_fraction: expected share of documents in "valid", in (0, 1); not used with `valid`.
        field: field of a JSON line, column of a parquet file.
        split_by: how a .txt file is split: "separator", or "file" for one document a file.
        limit: take the first `limit` documents of `path` only, before they are split; 0 takes all.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is empty or of an unknown kind, one file is in both, the fraction is impossible; and from
            `documents`, what is malformed (file and line are named), or a file without a document.
    """

    synthetic = False

    def __init__(
        self,
        path: str | Path,
        valid: str | Path | None = None,
        valid_fraction: float = 0.1,
        *,
        field: str = "text",
        split_by: str = "separator",
        limit: int = 0,
    ) -> None:
        if not 0.0 < valid_fraction < 1.0:
            raise ValueError(f"valid_fraction is {valid_fraction}; it must lie between 0 and 1, e.g. 0.1")
        if limit < 0:
            raise ValueError(f"the number of documents is {limit}; it must be at least 0, and 0 means all")
        check_split_by(split_by)
        self.path = Path(path)
        self.valid = None if valid is None else Path(valid)
        self.valid_fraction = valid_fraction
        self.field, self.split_by, self.limit = field, split_by, limit
        self.files = find_files(path)
        self.valid_files = [] if valid is None else find_files(valid)
        self._check_disjoint()
        self.name = self.path.name

    def documents(self, split: str) -> Iterator[str]:
        """The documents of one split, in file order."""
        check_split(split)
        if self.valid is not None:
            return self._training_text() if split == "train" else self._read(self.valid_files)
        part = training_part if split == "train" else validation_part
        return part(self._training_text(), self.valid_fraction, str(self.path))

    def describe(self) -> dict[str, object]:
        """Paths, sizes and sha256 of the files, how they are read, and how they are split."""
        facts = self._facts(self.path, self.files)
        # What is left at its default is not named, so that the same file keeps the same facts.
        if any(format_of(file) != "text" for file in self.files + self.valid_files):
            facts["field"] = self.field
        if self.split_by != "separator":
            facts["split_by"] = self.split_by
        if self.limit:
            facts["first_documents"] = self.limit
        if self.valid is not None:
            return {**facts, "valid": self._facts(self.valid, self.valid_files), "split": "a file for each split"}
        return {**facts, "split": f"{self.valid_fraction:g} of the documents by the hash of their text"}

    def floor(self) -> float | None:
        """None: nobody knows the entropy of a real text."""
        return None

    def expected_bytes(self, split: str) -> int | None:
        """About how many bytes of text a split has, for a progress bar; None where that is not quickly known."""
        check_split(split)
        if split == "valid" and self.valid is not None:
            return expected_size(self.valid_files, self.field)
        size = expected_size(self.files, self.field)
        if self.limit:
            sample = [len(document.encode("utf-8")) for document in islice(self._read(self.files), 256)]
            mean = self.limit * sum(sample) // max(1, len(sample))
            size = min(size, mean)
        if self.valid is not None:
            return size
        return round(size * (self.valid_fraction if split == "valid" else 1.0 - self.valid_fraction))

    def _training_text(self) -> Iterator[str]:
        documents = self._read(self.files)
        return islice(documents, self.limit) if self.limit else documents

    def _read(self, files: list[Path]) -> Iterator[str]:
        for file in files:
            yield from file_documents(file, self.field, self.split_by)

    def _facts(self, path: Path, files: list[Path]) -> dict[str, object]:
        if files == [path]:
            kind = {"text": "text file", "json lines": "json lines file"}.get(format_of(path) or "", "parquet file")
            return {"kind": kind, **file_facts(path)}
        return {
            "kind": "text files",
            "path": str(path),
            "files": [{"format": format_of(file), **file_facts(file)} for file in files],
        }

    def _check_disjoint(self) -> None:
        training = {(stat.st_dev, stat.st_ino) for stat in (file.stat() for file in self.files)}
        for file in self.valid_files:
            if ((stat := file.stat()).st_dev, stat.st_ino) not in training:
                continue
            if self.files == [self.path]:
                raise ValueError(
                    f"{file}: the training and the validation file are one; leave the second out to split it"
                )
            raise ValueError(f"{file}: this validation file is also one of the training files of {self.path}")
