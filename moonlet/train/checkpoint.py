"""Checkpoints that are whole or not there.

A checkpoint is a folder `step-00000120` holding a Hugging Face model and a `state/` sub-folder with what only a resume
needs. It is written under a temporary name, file by file synced; a manifest with every file's size and sha256 is
written last; then the folder is renamed and its parent synced. From that moment it is acknowledged. A kill at any
instant leaves the old checkpoints and perhaps a temporary folder, which the next start removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from moonlet.text.atomic import atomic_write, sync_folder

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8})$")
_TEMPORARY = ".writing-"
_DYING = ".removing-"


def save_checkpoint(folder: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """Write checkpoint `step` into `folder`; returns its path once it is acknowledged.

    Args:
        folder: where the run's checkpoints lie.
        fill: writes the checkpoint's files into the folder it is given.

    Raises:
        OSError: disk full, or not writable; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    temporary = folder / f"{_TEMPORARY}{step:08d}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        fill(temporary)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        entries = {}
        for path in files:
            entries[path.relative_to(temporary).as_posix()] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for inner in {path.parent for path in files}:
            sync_folder(inner)
        atomic_write(temporary / MANIFEST, json.dumps({"format": 1, "step": step, "files": entries}, indent=1) + "\n")
        if final.exists():
            # Only a damaged checkpoint, already refused by a resume, is ever written again.
            _remove(final)
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first, whole or not."""
    found = [p for p in folder.glob("step-*") if _NAME.match(p.name) and p.is_dir()] if folder.is_dir() else []
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    match = _NAME.match(path.name)
    assert match
    return int(match.group(1))


def problem_of(path: Path, *, hashes: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None: every file of its manifest is there, in size and in sha256."""
    try:
        entries = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return "it has no manifest"
    except (ValueError, KeyError, TypeError):
        return "its manifest is damaged"
    for name, entry in entries.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, expected {entry['bytes']}"
        if hashes and _digest(file) != entry["sha256"]:
            return f"{name} is damaged (its sha256 differs)"
    return None


def newest_good(folder: Path, warn: Callable[[str], None] = lambda _: None) -> Path | None:
    """The newest whole checkpoint, or None. What is wrong with newer ones is told to `warn`."""
    for path in reversed(checkpoints(folder)):
        problem = problem_of(path)
        if problem is None:
            return path
        warn(f"checkpoint {path.name} is passed over: {problem}")
    return None


def prune(folder: Path, keep: int) -> list[Path]:
    """Remove all but the newest `keep` checkpoints, but never the newest good one. Returns what was removed."""
    removed = []
    kept = checkpoints(folder)[-keep:]
    good = any(problem_of(path, hashes=False) is None for path in kept)
    for path in checkpoints(folder)[:-keep]:
        if not good:
            break
        _remove(path)
        removed.append(path)
    return removed


def clean_leftovers(folder: Path) -> None:
    """Remove what a killed writer left behind. Only the holder of the run's lock may call this."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith((_TEMPORARY, _DYING)):
                shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    # Renamed first: a kill in the midst of the removal must not leave a folder that looks like a checkpoint.
    dying = path.with_name(_DYING + path.name)
    shutil.rmtree(dying, ignore_errors=True)
    os.replace(path, dying)
    shutil.rmtree(dying, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
