"""journal.json: how far an unfinished preparation has come, so that the next one goes on from there.

It is written after the files that it speaks of are safe on disk, and removed once the manifest is there. A journal of
another corpus, tokenizer or shape of shards is worth nothing and removed with the files that it speaks of.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moonlet.data.corpus import SPLITS
from moonlet.data.manifest import FileInfo
from moonlet.data.shards import Reached, can_go_on, remove_shards
from moonlet.text.atomic import atomic_write

JOURNAL_FILE = "journal.json"


class Journal:
    """How far each split has come.

    Args:
        folder: where the data set is prepared.
        job: all that decides the bytes (corpus, tokenizer, dtype, shard size), JSON-able.
    """

    def __init__(self, folder: Path, job: dict[str, object]) -> None:
        self._path = folder / JOURNAL_FILE
        # Through JSON, because that is what the file went through: a tuple comes back as a list.
        self._job = json.loads(json.dumps(job))
        self.reached: dict[str, Reached] = dict.fromkeys(SPLITS, Reached())
        found = self._read()
        if found and all(can_go_on(folder, split, found[split], str(job["dtype"])) for split in SPLITS):
            self.reached = found
            return
        self._path.unlink(missing_ok=True)
        for split in SPLITS:
            remove_shards(folder, split)

    def write(self, split: str, reached: Reached) -> None:
        """Note how far a split has come, atomically; its files are on disk already."""
        self.reached[split] = reached
        splits = {name: asdict(value) for name, value in self.reached.items()}
        atomic_write(self._path, json.dumps({"job": self._job, "splits": splits}, indent=1) + "\n")

    def remove(self) -> None:
        """Remove the file: the manifest has taken its place."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Reached] | None:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content["job"] != self._job:
                return None
            return {split: _reached(content["splits"][split]) for split in SPLITS}
        # A journal is a convenience: one that cannot be read costs the time to begin anew, nothing else.
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _reached(content: dict[str, Any]) -> Reached:
    return Reached(**{**content, "shards": tuple(FileInfo(**shard) for shard in content["shards"])})
