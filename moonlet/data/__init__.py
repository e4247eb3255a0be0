"""Corpora, preparation into token shards, and the loader that seeks to any step.

    corpus (documents) -> prepare (shards of tokens, manifest) -> open_dataset -> Loader (batches)
    task (synthetic recall) -> RecallLoader (batches, drawn on the fly)

Names are resolved on first use, so that importing the room costs nothing. `prepare` is imported from its own module,
`moonlet.data.prepare`, whose name it shares.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moonlet.data.corpus import Corpus, TextFileCorpus
    from moonlet.data.dataset import Dataset, open_dataset
    from moonlet.data.loader import Loader
    from moonlet.data.manifest import Manifest
    from moonlet.data.recall import RecallLoader, RecallTask
    from moonlet.data.stream import TokenStream
    from moonlet.data.synthetic import StoryCorpus

__all__ = [
    "Corpus",
    "Dataset",
    "Loader",
    "Manifest",
    "RecallLoader",
    "RecallTask",
    "StoryCorpus",
    "TextFileCorpus",
    "TokenStream",
    "open_dataset",
]

_HOME = {
    "Corpus": "moonlet.data.corpus",
    "Dataset": "moonlet.data.dataset",
    "Loader": "moonlet.data.loader",
    "Manifest": "moonlet.data.manifest",
    "RecallLoader": "moonlet.data.recall",
    "RecallTask": "moonlet.data.recall",
    "StoryCorpus": "moonlet.data.synthetic",
    "TextFileCorpus": "moonlet.data.corpus",
    "TokenStream": "moonlet.data.stream",
    "open_dataset": "moonlet.data.dataset",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
