"""Which files a corpus is made of: one file, a folder (with all below it), or a glob; and how each of them is read.

The order is that of the paths, part by part, so it does not depend on the file system.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

# What a name ends in -> how the file is read. A .gz behind it is unpacked while it is read.
FORMATS = {".txt": "text", ".jsonl": "json lines", ".ndjson": "json lines", ".parquet": "parquet"}
PACKED = ".gz"
ENDINGS = ", ".join([".txt", ".jsonl", ".parquet", ".txt.gz", ".jsonl.gz"])


def format_of(path: Path) -> str | None:
    """The format that a file's name tells, a value of `FORMATS`; None where the name tells none."""
    name = path.name.lower()
    packed = name.endswith(PACKED)
    found = FORMATS.get(Path(name.removesuffix(PACKED)).suffix)
    return None if packed and found == "parquet" else found


def find_files(path: str | Path) -> list[Path]:
    """The text files that `path` names, in order.

    Args:
        path: a file; a folder, whose files of a known format are taken, also from folders in it, hidden ones left out;
            or a pattern with `*`, `?`, `[...]` and `**`.

    Raises:
        FileNotFoundError: no such file, or the pattern fits none.
        ValueError: a file has an unknown ending or is empty, or a folder holds no text.
    """
    named = Path(path)
    if named.is_dir():
        found = _below(named)
        if not found:
            raise ValueError(f"{named}: no text in this folder; moonlet reads {ENDINGS}")
    elif named.exists():
        found = [named]
    elif glob.has_magic(str(path)):
        found = sorted(p for name in glob.glob(str(path), recursive=True) if (p := Path(name)).is_file())
        if not found:
            raise FileNotFoundError(f"{path}: no file fits this pattern")
    else:
        raise FileNotFoundError(f"{path}: no such text file")
    for file in found:
        if format_of(file) is None:
            raise ValueError(f"{file}: unknown ending {''.join(file.suffixes[-2:])!r}; moonlet reads {ENDINGS}")
        if file.is_file() and file.stat().st_size == 0:
            raise ValueError(f"{file}: the file is empty")
    return found


def _below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise error

    found = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = (Path(place) / name for name in names if not name.startswith("."))
        found += [path for path in here if format_of(path) is not None]
    return sorted(found)
