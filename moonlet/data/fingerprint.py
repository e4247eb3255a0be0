"""What a file is: its size and the sha256 of its bytes, read once while it does not change."""

from __future__ import annotations

import hashlib
from pathlib import Path

# (device, inode, size, times of change) -> sha256. Ten gigabytes take half a minute to read, and a run asks for the
# facts of its corpus more than once.
_KNOWN: dict[tuple[int, ...], str] = {}


def file_facts(path: Path) -> dict[str, object]:
    """{"path", "bytes", "sha256"} of a file.

    Raises:
        OSError: it cannot be read.
    """
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes; not read again in this process while size and times stay the same."""
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if key not in _KNOWN:
        with path.open("rb") as file:
            _KNOWN[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _KNOWN[key]
