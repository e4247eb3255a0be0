"""TinyStories (Eldan & Li 2023, arXiv 2305.07759) from the Hugging Face hub: stories that GPT-4 told small children.

The data set `roneneldan/TinyStories` has plain files with a line `<|endoftext|>` between stories, so the first N
stories are the beginning of a file: only as much is downloaded as holds them, and more stories later go on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from moonlet.data.corpus import SPLITS, check_split
from moonlet.data.documents import SEPARATOR, file_documents
from moonlet.data.download import CachedFile, cache_folder
from moonlet.data.hub import Remote, Unreachable, endpoint, file_url

REPOSITORY = "roneneldan/TinyStories"
FILES = {"train": "TinyStoriesV2-GPT4-train.txt", "valid": "TinyStoriesV2-GPT4-valid.txt"}

Progress = Callable[[str, int, int | None], None]
"""Called while a file comes with its name, the bytes that are there, and about how many are wanted, if known."""


class TinyStoriesCorpus:
    """The first stories of the data set's own training and validation files, downloaded when they are first asked for.

    Args:
        stories: number of training stories; 0 takes all (2.7 million, 2.2 GB).
        valid_stories: number of validation stories; 0 takes all (27,630, 22 MB).
        cache: where the files lie; None takes `cache_folder()`.
        revision: branch, tag or commit of the repository.
        progress: told while a file comes.

    Raises:
        ValueError: a number is negative; and from `documents` and `describe`, the hub cannot be reached (the message
            names what to do without it), it gives no such file, or the file is not what the hub says it is.
    """

    name = "TinyStories"
    synthetic = False

    def __init__(
        self,
        stories: int = 0,
        valid_stories: int = 0,
        *,
        cache: Path | None = None,
        revision: str = "main",
        progress: Progress | None = None,
    ) -> None:
        self._wanted = {"train": stories, "valid": valid_stories}
        for split, number in self._wanted.items():
            if number < 0:
                raise ValueError(f"{number} {split} stories; the number must be at least 0, and 0 means all")
        folder = (cache_folder() if cache is None else Path(cache)) / "tinystories"
        if revision != "main":
            folder = folder / revision.replace("/", "-")
        self._files = {
            split: CachedFile(file_url(REPOSITORY, name, revision), folder / name) for split, name in FILES.items()
        }
        self._progress = progress
        self._ready: set[str] = set()

    def documents(self, split: str) -> Iterator[str]:
        """The stories of one split, in the order of the file."""
        check_split(split)
        self._ensure(split)
        stories = file_documents(self._files[split].local())
        return islice(stories, self._wanted[split]) if self._wanted[split] else stories

    def describe(self) -> dict[str, object]:
        """The hub's sha256 of both files, and how many stories of each."""
        facts: dict[str, object] = {"kind": "tinystories", "repository": REPOSITORY}
        for split in SPLITS:
            self._ensure(split)
            remote = self._files[split].remote()
            digest = "" if remote is None else remote.digest
            facts[split] = {"file": FILES[split], "sha256": digest, "stories": self._wanted[split] or "all"}
        return {**facts, "split": "the data set's own files"}

    def floor(self) -> float | None:
        """None: nobody knows the entropy of real stories."""
        return None

    def expected_bytes(self, split: str) -> int | None:
        """About how many bytes of text a split has; None before it is there."""
        check_split(split)
        file = self._files[split]
        if split not in self._ready:
            return None
        if not self._wanted[split]:
            return file.local().stat().st_size
        sample = [len(story.encode("utf-8")) for story in islice(self.documents(split), 256)]
        return sum(sample) * self._wanted[split] // max(1, len(sample))

    def remote(self, split: str) -> Remote | None:
        """What the hub says of a split's file; None before it was asked."""
        check_split(split)
        return self._files[split].remote()

    def is_whole(self, split: str) -> bool:
        """Whether a split's file is in the cache from end to end, and its digest that of the hub."""
        check_split(split)
        return self._files[split].is_whole()

    def _ensure(self, split: str) -> None:
        """Download what is missing of a split's stories."""
        if split in self._ready:
            return
        file, wanted = self._files[split], self._wanted[split]
        file.check_part()
        while not file.is_whole():
            there = _stories_in(file.part, wanted) if wanted else 0
            if wanted and there >= wanted:
                break
            self._fetch(split, wanted and wanted - there)
        self._ready.add(split)

    def _fetch(self, split: str, missing: int) -> None:
        """Download `missing` more stories, or all."""
        file = self._files[split]
        counter = _Counter(missing)
        before = file.part.stat().st_size if file.part.is_file() else 0

        def tell(size: int, whole: int | None) -> None:
            if self._progress is not None:
                total = before + counter.expected() if missing and counter.seen else None
                sizes = [number for number in (total, whole) if number is not None]
                self._progress(FILES[split], size, min(sizes, default=None))

        try:
            file.fetch(counter if missing else None, tell)
        except Unreachable as error:
            raise ValueError(
                f"TinyStories cannot be fetched from {endpoint()}: {error}; without a network train on the built-in "
                f"stories (data.kind=story) or on a file of your own (data.path=FILE)"
            ) from None


class _Counter:
    """Counts the ends of stories in what comes, and says when they are enough."""

    def __init__(self, wanted: int) -> None:
        self.seen = 0
        self._bytes = 0
        self._wanted = wanted
        self._tail = b""

    def __call__(self, piece: bytes) -> bool:
        mark = SEPARATOR.encode() + b"\n"
        self._bytes += len(piece)
        self.seen += (self._tail + piece).count(mark)
        # A mark may lie across two pieces; a tail shorter than one is never counted twice.
        self._tail = (self._tail + piece)[-(len(mark) - 1) :]
        return self.seen >= self._wanted

    def expected(self) -> int:
        """About how many bytes the wanted stories have, judged by those that came."""
        return self._bytes * self._wanted // max(1, self.seen)


def _stories_in(path: Path, wanted: int) -> int:
    """How many whole stories lie in the beginning of a file, counted up to `wanted`."""
    if not path.is_file():
        return 0
    count, text = 0, False
    with path.open("rb") as file:
        for line in file:
            content = line.decode("utf-8", errors="replace").strip()
            if content == SEPARATOR:
                count, text = count + text, False
                if count == wanted:
                    break
            elif content:
                text = True
    return count
