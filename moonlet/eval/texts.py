"""The texts a model is measured on: a file that was named, or the validation split its run set aside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from moonlet.data.corpus import read_documents
from moonlet.data.dataset import Dataset, open_dataset
from moonlet.data.manifest import MANIFEST_FILE
from moonlet.eval.bits import encoded
from moonlet.text.tokenizer import Tokenizer
from moonlet.train.run import Run

# Training text in which copies are looked for, at most.
TRAINING_BYTES = 30_000_000


class FileTexts:
    """The documents of a file, a folder or a glob.

    Raises:
        FileNotFoundError, ValueError: there is no text; names the file.
    """

    floor: float | None = None

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self.path, self.tokenizer = path, tokenizer
        self.name = path.name
        next(read_documents(path))  # complains now rather than after a model was measured

    def documents(self) -> Iterator[tuple[Sequence[int], int]]:
        """Ids with [BOS] and [EOS], and the UTF-8 bytes of the text."""
        return encoded(self.tokenizer, read_documents(self.path))

    def plain(self) -> Iterator[str]:
        """The documents as the tokenizer gives them back, so that told texts may be compared with them."""
        return (self.tokenizer.decode(self.tokenizer.encode(text)) for text in read_documents(self.path))

    def packed(self) -> Packed:
        """All documents, one behind the other."""
        return Packed(list(chain.from_iterable(ids for ids, _ in self.documents())))


class RunTexts:
    """The validation split of a run.

    Raises:
        ValueError, FileNotFoundError: the run has no prepared data set any more.
    """

    def __init__(self, run: Run, tokenizer: Tokenizer) -> None:
        self.dataset = run_dataset(run)
        self.tokenizer = tokenizer
        self.name = f"{self.dataset.manifest.name}, validation split"
        self.floor = self.dataset.manifest.floor

    def documents(self) -> Iterator[tuple[Sequence[int], int]]:
        """Ids with [BOS] and [EOS], and the UTF-8 bytes of the original text."""
        stream = self.dataset.tokens("valid")
        return ((stream.document(i).tolist(), stream.document_bytes(i)) for i in range(stream.n_documents))

    def plain(self) -> Iterator[str]:
        """The documents as the tokenizer gives them back."""
        return (self.tokenizer.decode(ids[1:-1]) for ids, _ in self.documents())

    def packed(self) -> Any:
        """All documents, one behind the other."""
        return self.dataset.tokens("valid")

    def training(self) -> Iterator[str]:
        """The first training documents, about `TRAINING_BYTES` of them, as the tokenizer gives them back."""
        stream, size = self.dataset.tokens("train"), 0
        for i in range(stream.n_documents):
            text = self.tokenizer.decode(stream.document(i)[1:-1].tolist())
            size += len(text)
            yield text
            if size >= TRAINING_BYTES:
                return


class Packed:
    """Ids in a list, read like a token stream."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, stop: int) -> list[int]:
        """Ids start .. stop - 1."""
        return self.ids[start:stop]


def run_dataset(run: Run) -> Dataset:
    """The prepared data set of a run: the one inside its folder, or the shared one that run.json names."""
    found = [p.parent for p in run.data.glob(f"*/{MANIFEST_FILE}")]
    if not found:
        named = run.facts().get("data")
        found = [Path(named)] if isinstance(named, str) else []
    if not found:
        raise ValueError(f"{run.path} has no prepared data set; give --data FILE")
    return open_dataset(found[0])
