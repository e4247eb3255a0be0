"""Write a file so that a reader sees the old bytes or the new bytes, never half of them.

Temporary name in the same folder -> write -> fsync -> os.replace -> fsync of the folder. The rename is atomic on one
file system, and the second fsync makes the new name itself survive a power cut.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which takes the name `path` only when the block ends without an exception.

    Args:
        path: final name; its folder is made when missing.

    Yields:
        The temporary path, in the same folder. On an exception it is removed and `path` is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers of one name from sharing a temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """`atomic_path`, opened as a binary file for writing."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) to `path` atomically."""
    with atomic_file(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to disk, where the system lets a folder be opened (Windows does not)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
