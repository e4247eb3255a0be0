"""The story world as a corpus: as many stories as wanted, from a seed, with a known entropy floor.

    floor = sum of bits of the validation stories / sum of their UTF-8 bytes

A story's bits are -log2 of its probability under the world that told it, so by Gibbs' inequality no model's expected
loss on fresh stories can be lower.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count, islice
from typing import Protocol

from moonlet.data.corpus import SPLITS, check_split

# Stories are asked for in runs of this many, where the number needed is not known beforehand.
_RUN = 1024


class _Story(Protocol):
    @property
    def text(self) -> str: ...

    @property
    def bits(self) -> float: ...


class StoryCorpus:
    """Stories of the built-in world (synthetic, and always labelled so).

    Args:
        stories: number of training stories; or None, and `megabytes` decides.
        valid_stories: number of validation stories, drawn from the world's own validation split.
        seed: seed of the world.
        megabytes: stop after the training story that reaches this many millions of UTF-8 bytes.
        questions: each story is followed by its questions and answers (`moonlet.data.story.asking`).

    Raises:
        ValueError: none or both of `stories` and `megabytes` are given, or a number is not positive.
    """

    name = "story world (synthetic)"
    synthetic = True

    def __init__(
        self,
        stories: int | None = None,
        valid_stories: int = 1000,
        seed: int = 0,
        *,
        megabytes: float | None = None,
        questions: bool = False,
    ) -> None:
        if (stories is None) == (megabytes is None):
            raise ValueError(f"give either stories or megabytes, not {stories} and {megabytes}")
        for name, value in (("stories", stories), ("megabytes", megabytes), ("valid_stories", valid_stories)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        self.stories = stories
        self.megabytes = megabytes
        self.valid_stories = valid_stories
        self.seed = seed
        self.questions = questions
        self._floor: float | None = None

    def documents(self, split: str) -> Iterator[str]:
        """The stories' texts of one split, told while they are read."""
        check_split(split)
        if split == "valid":
            yield from (story.text for story in self._told("valid", self.valid_stories))
        elif self.stories is not None:
            yield from (story.text for story in self._told("train", self.stories))
        else:
            assert self.megabytes is not None
            left = self.megabytes * 1e6
            for story in self._endless("train"):
                yield story.text
                left -= len(story.text.encode("utf-8"))
                if left <= 0:
                    return

    def describe(self) -> dict[str, object]:
        """Seed, sizes, and a hash of the first stories, which changes when the world does."""
        fingerprint = hashlib.sha256()
        for split in SPLITS:
            for story in self._told(split, 16):
                fingerprint.update(story.text.encode("utf-8") + b"\0")
        size = {"stories": self.stories} if self.stories is not None else {"megabytes": self.megabytes}
        return {
            "kind": "story world",
            "seed": self.seed,
            **size,
            "valid_stories": self.valid_stories,
            **({"questions": True} if self.questions else {}),
            "first_stories_sha256": fingerprint.hexdigest(),
            "split": "the world's own training and validation stories",
        }

    def floor(self) -> float:
        """Mean information of the validation stories, bits per UTF-8 byte."""
        if self._floor is None:
            bits, size = 0.0, 0
            for story in self._told("valid", self.valid_stories):
                bits += story.bits
                size += len(story.text.encode("utf-8"))
            self._floor = bits / size
        return self._floor

    def expected_bytes(self, split: str) -> int:
        """About how many bytes of text a split has."""
        check_split(split)
        if split == "train" and self.megabytes is not None:
            return round(self.megabytes * 1e6)
        stories = self.valid_stories if split == "valid" else self.stories
        assert stories is not None
        sample = [len(story.text.encode("utf-8")) for story in self._told(split, 32)]
        return stories * sum(sample) // len(sample)

    def _told(self, split: str, stories: int) -> Iterator[_Story]:
        return islice(self._endless(split, stories), stories)

    def _endless(self, split: str, run: int = _RUN) -> Iterator[_Story]:
        from moonlet.data.story import StoryWorld
        from moonlet.data.story.asking import with_questions

        world = StoryWorld(self.seed)
        for start in count(0, run):
            told = world.stories(run, start=start, split=split)
            yield from (with_questions(story) for story in told) if self.questions else told
