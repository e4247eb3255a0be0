"""About how much text a corpus has, so that a progress bar can tell the time that is left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moonlet.data.files import PACKED, format_of

# Bytes of English text that gzip makes one byte of.
_UNPACKED = 2.7


def expected_bytes(corpus: object, split: str) -> int | None:
    """About how many UTF-8 bytes the documents of a split have; None where the corpus does not say.

    Args:
        corpus: any corpus; one that knows has a method `expected_bytes(split)`.
        split: "train" or "valid".
    """
    method = getattr(corpus, "expected_bytes", None)
    found = None if method is None else method(split)
    return found if isinstance(found, int) else None


def expected_size(files: Sequence[Path], field: str) -> int:
    """About how many bytes of text files hold, judged by their sizes."""
    size = 0.0
    for file in files:
        if format_of(file) == "parquet":
            from moonlet.data.parquet import parquet_size

            size += parquet_size(file, field)
        else:
            size += file.stat().st_size * (_UNPACKED if file.name.lower().endswith(PACKED) else 1.0)
    return round(size)
