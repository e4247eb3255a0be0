"""A corpus: documents, in order, in two splits that share none; and the plainest one, a text file.

The protocol is small so that a folder of JSON lines, a parquet file or a hub data set can follow it: stream the
documents of a split, say in JSON what they are, and say how well any model could do, where that is known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from moonlet.text.atomic import atomic_file

SPLITS = ("train", "valid")
SEPARATOR = "<|endoftext|>"


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
    """A UTF-8 text file with documents between lines that hold `<|endoftext|>` alone.

    Documents lose the white space around them, and empty ones are dropped. With no `valid` file a document goes to
    "valid" when the hash of its text says so, hence copies of a text lie on one side and adding documents moves no
    other. The first document (and its copies) always trains; if the hash picks none, the last document is "valid"; and
    the only document of a file is cut near `1 - valid_fraction` of its length, at the end of a line or word.

    Args:
        path: the text file.
        valid: a second file that holds the validation documents; then all of `path` trains.
        valid_fraction: expected share of documents in "valid", in (0, 1); not used with `valid`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is empty, both are one file, the fraction is impossible; and from `documents`, a line that is
            not UTF-8 (file and line are named) or a file without a document.
    """

    synthetic = False

    def __init__(self, path: Path, valid: Path | None = None, valid_fraction: float = 0.1) -> None:
        if not 0.0 < valid_fraction < 1.0:
            raise ValueError(f"valid_fraction is {valid_fraction}; it must lie between 0 and 1, e.g. 0.1")
        self.path = Path(path)
        self.valid = None if valid is None else Path(valid)
        self.valid_fraction = valid_fraction
        for file in self._files():
            if not file.is_file():
                raise FileNotFoundError(f"{file}: no such text file")
            if file.stat().st_size == 0:
                raise ValueError(f"{file}: the file is empty")
        if self.valid is not None and self.valid.samefile(self.path):
            raise ValueError(
                f"{self.valid}: the training and the validation file are one; leave the second out to split it"
            )
        self.name = self.path.name

    def documents(self, split: str) -> Iterator[str]:
        """The documents of one split, in file order."""
        check_split(split)
        if self.valid is not None:
            return read_documents(self.path if split == "train" else self.valid)
        return self._train() if split == "train" else self._valid()

    def describe(self) -> dict[str, object]:
        """Path, size and sha256 of the file or files, and how they are split."""
        facts: dict[str, object] = {"kind": "text file", **_file_facts(self.path)}
        if self.valid is not None:
            return {**facts, "valid": _file_facts(self.valid), "split": "a file for each split"}
        return {**facts, "split": f"{self.valid_fraction:g} of the documents by the hash of their text"}

    def floor(self) -> float | None:
        """None: nobody knows the entropy of a real text."""
        return None

    def _files(self) -> list[Path]:
        return [self.path] if self.valid is None else [self.path, self.valid]

    def _labelled(self) -> Iterator[tuple[str, bool]]:
        """Each document with whether the hash picks it for validation."""
        first: bytes | None = None
        for document in read_documents(self.path):
            digest = hashlib.blake2b(document.encode("utf-8"), digest_size=8).digest()
            first = first or digest
            share = int.from_bytes(digest, "little") / 2**64
            yield document, share < self.valid_fraction and digest != first

    def _train(self) -> Iterator[str]:
        # One document is held back, because the last one goes to "valid" if no other did.
        held: str | None = None
        count, picked = 0, 0
        for document, for_valid in self._labelled():
            count += 1
            picked += for_valid
            if not for_valid:
                if held is not None:
                    yield held
                held = document
        if held is not None and (picked or count == 1):
            yield held if picked else self._cut(held)[0]

    def _valid(self) -> Iterator[str]:
        last = ""
        count, picked = 0, 0
        for document, for_valid in self._labelled():
            count += 1
            picked += for_valid
            last = document
            if for_valid:
                yield document
        if not picked:
            yield self._cut(last)[1] if count == 1 else last

    def _cut(self, document: str) -> tuple[str, str]:
        """The only document in two, at the last line end (else space) of the first part's second half."""
        end = int(len(document) * (1.0 - self.valid_fraction))
        cuts = (document.rfind(mark, end // 2, end) for mark in ("\n", " "))
        cut = next((cut for cut in cuts if cut > 0), end)
        head, tail = document[:cut].strip(), document[cut:].strip()
        if not head or not tail:
            raise ValueError(
                f"{self.path}: its only document ({len(document)} characters) is too short to split; "
                f"give a validation file"
            )
        return head, tail


def read_documents(path: Path) -> Iterator[str]:
    """Stream the documents of a text file; see `TextFileCorpus`.

    Raises:
        ValueError: a line is not UTF-8, or there is no document; names file and line.
    """
    lines: list[str] = []
    found = False
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                # Windows editors put a byte order mark in front, which is no part of the text.
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: byte 0x{error.object[error.start]:02x} at column {error.start + 1} is not "
                    f"UTF-8; convert the file, e.g. `iconv -f latin1 -t utf-8`"
                ) from None
            if line.strip() != SEPARATOR:
                lines.append(line)
                continue
            if document := "".join(lines).strip():
                found = True
                yield document
            lines = []
    if document := "".join(lines).strip():
        found = True
        yield document
    if not found:
        raise ValueError(f"{path}: no document in it, only white space and {SEPARATOR} lines")


def write_documents(documents: Iterable[str], path: Path) -> tuple[int, int]:
    """Write documents as a text file that `TextFileCorpus` reads, atomically.

    Returns:
        The number of documents and their UTF-8 bytes, separators not counted.
    """
    count, size = 0, 0
    with atomic_file(Path(path)) as file:
        for document in documents:
            data = document.encode("utf-8")
            file.write(data + f"\n{SEPARATOR}\n".encode())
            count, size = count + 1, size + len(data)
    return count, size


def _file_facts(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": digest}
