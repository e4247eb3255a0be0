"""From the [data] section of a recipe to a corpus."""

from __future__ import annotations

from moonlet.config.sections import DataSettings
from moonlet.data.corpus import Corpus, TextFileCorpus
from moonlet.data.synthetic import StoryCorpus
from moonlet.data.tinystories import Progress, TinyStoriesCorpus


def open_corpus(settings: DataSettings, progress: Progress | None = None) -> Corpus:
    """The corpus that a recipe names.

    Args:
        settings: the recipe's [data] section. kind "tinystories" with a path reads that path instead of the hub.
        progress: told while a file is downloaded: its name, the bytes that are there, and about how many are wanted.

    Raises:
        FileNotFoundError, ValueError: a file is missing or cannot be used; see `TextFileCorpus`.
    """
    if settings.kind == "story":
        return StoryCorpus(
            megabytes=settings.megabytes,
            valid_stories=settings.valid_stories,
            seed=settings.seed,
            questions=settings.questions,
        )
    if settings.kind not in ("text", "tinystories"):
        raise ValueError(f"data.kind is {settings.kind!r}, which is no text; valid here: story, tinystories, text")
    if settings.kind == "tinystories" and not settings.path:
        if settings.valid:
            raise ValueError(
                f"data.valid is {settings.valid!r} without data.path; TinyStories has its own validation file"
            )
        return TinyStoriesCorpus(settings.stories, progress=progress)
    if not settings.path:
        raise ValueError(f"data.kind is {settings.kind!r} and data.path is empty; give data.path=FILE")
    return TextFileCorpus(
        settings.path,
        settings.valid or None,
        settings.valid_fraction,
        field=settings.field,
        split_by=settings.split_by,
        limit=settings.stories,
    )
