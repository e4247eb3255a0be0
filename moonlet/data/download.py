"""A file of the hub in the cache: as much of it as is needed, from where it stopped, checked when it is whole.

    NAME.part   the bytes so far, from the first on
    NAME.json   what the hub says of the file, and the sha256 of the bytes of NAME.part when a download last ended
    NAME        the file, whole, its digest found equal to the hub's; nothing is asked of the hub any more

A connection that breaks is taken up again at the byte where it broke; a process that was killed, by the next one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moonlet.data.hub import Refused, Remote, Unreachable, look_up, open_from
from moonlet.text.atomic import atomic_write, sync_folder

_CHUNK = 2**18
# Attempts in a row that bring nothing, and the seconds to wait after the first; each later wait is twice as long.
_ATTEMPTS = 4
_WAIT = 1.0

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes there will be, where that is known."""


def cache_folder() -> Path:
    """Where downloads lie: MOONLET_CACHE, or .cache/moonlet in the home folder."""
    named = os.environ.get("MOONLET_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "moonlet"


class CachedFile:
    """One file of the hub in the cache.

    Args:
        url: its address, from `moonlet.data.hub.file_url`.
        path: where the whole file will lie.
    """

    def __init__(self, url: str, path: Path) -> None:
        self.url, self.path = url, path
        self.part = path.with_name(path.name + ".part")
        self._record = path.with_name(path.name + ".json")

    def is_whole(self) -> bool:
        """Whether the whole file is there, checked."""
        return self.path.is_file()

    def local(self) -> Path:
        """The file that holds what is there: the whole one, or its first part."""
        return self.path if self.is_whole() else self.part

    def remote(self) -> Remote | None:
        """What the hub said of the file when it was last asked; None where it never was."""
        record = self._read()
        return None if record is None else record.remote

    def check_part(self) -> None:
        """Drop a part whose first bytes are no longer those that were downloaded, or that is another file's."""
        record = self._read()
        if self.is_whole() or not self.part.is_file():
            return
        if record is None or _sha256(self.part, record.bytes) != record.sha256:
            self.part.unlink()

    def fetch(self, enough: Callable[[bytes], bool] | None = None, progress: Progress | None = None) -> None:
        """Download what is missing, up to the end or until `enough` says so.

        Args:
            enough: given each piece as it comes, from where the part ended; True stops.
            progress: told after each piece.

        Raises:
            Unreachable: the hub cannot be reached, or the connection keeps breaking; what came is kept.
            Refused: the hub does not give the file.
            ValueError: the whole file has another digest or size than the hub says; it is removed.
            OSError: the disk is full.
        """
        from filelock import FileLock

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(self.path.name + ".lock")):
            if self.is_whole():
                return
            remote = look_up(self.url)
            self._begin(remote)
            if enough is None:
                self._check_room(remote)
            whole = self._fill(remote, enough, progress)
            size = self.part.stat().st_size
            _Record(remote, size, _sha256(self.part, size)).write(self._record)
            if whole:
                self._take(remote)

    def _begin(self, remote: Remote) -> None:
        record = self._read()
        same = record is not None and (record.remote.digest, record.remote.size) == (remote.digest, remote.size)
        if same and self.part.is_file():
            self.check_part()
        else:
            # What another version of the file left behind does not go together with this one.
            self.part.unlink(missing_ok=True)
        if not self.part.is_file():
            self.part.touch()
            _Record(remote, 0, hashlib.sha256().hexdigest()).write(self._record)

    def _check_room(self, remote: Remote) -> None:
        missing = (remote.size or 0) - self.part.stat().st_size
        free = shutil.disk_usage(self.path.parent).free
        if missing > free:
            raise ValueError(
                f"{self.path}: {missing:,} bytes are still to come, and the disk has {free:,} free; "
                f"set MOONLET_CACHE to a folder with more room"
            )

    def _fill(self, remote: Remote, enough: Callable[[bytes], bool] | None, progress: Progress | None) -> bool:
        """Append until the file is whole (True) or enough (False)."""
        fruitless, begun_anew = 0, False
        while True:
            before = self.part.stat().st_size
            try:
                ended = self._stream(remote, enough, progress)
                if ended is not None:
                    return ended
                problem = "the connection was cut"
            except Unreachable as error:
                problem = str(error)
            except Refused as error:
                # 416: what lies here is longer than the file, so it is no beginning of it.
                if error.status != 416 or before == 0 or begun_anew:
                    raise
                os.truncate(self.part, 0)
                begun_anew = True
                continue
            fruitless = 0 if self.part.stat().st_size > before else fruitless + 1
            if fruitless >= _ATTEMPTS:
                raise Unreachable(
                    f"{problem}, {_ATTEMPTS} times in a row after {self.part.stat().st_size:,} bytes, which are kept: "
                    f"the same command goes on from there"
                )
            if fruitless:
                time.sleep(_WAIT * 2 ** (fruitless - 1))

    def _stream(self, remote: Remote, enough: Callable[[bytes], bool] | None, progress: Progress | None) -> bool | None:
        """One connection: True, the file is whole; False, it is enough; None, the connection ended early."""
        have = self.part.stat().st_size
        if remote.size is not None and have >= remote.size:
            return True
        with open_from(remote, have) as (start, stream), self.part.open("r+b") as file:
            # A server that cannot begin in the middle sends it all; what is there already is read past.
            skip = have - start
            file.seek(have)
            while piece := stream.read(_CHUNK):
                fresh, skip = piece[skip:], max(0, skip - len(piece))
                if not fresh:
                    continue
                file.write(fresh)
                have += len(fresh)
                if progress is not None:
                    progress(have, remote.size)
                if enough is not None and enough(fresh):
                    return remote.size is not None and have >= remote.size
            file.flush()
            os.fsync(file.fileno())
        if remote.size is None:
            return True
        return True if have >= remote.size else None

    def _take(self, remote: Remote) -> None:
        """Give the whole file its name, if its digest is the hub's."""
        size = self.part.stat().st_size
        found = _git_sha1(self.part) if len(remote.digest) == 40 else _sha256(self.part, size)
        wrong = remote.digest and found != remote.digest
        if wrong or (remote.size is not None and size != remote.size):
            self.part.unlink()
            self._record.unlink(missing_ok=True)
            kind = "git sha1" if len(remote.digest) == 40 else "sha256"
            raise ValueError(
                f"{self.url}: downloaded {size:,} bytes with {kind} {found[:12]}, but the hub says "
                f"{remote.size or size:,} bytes with {remote.digest[:12]}; what came was removed, so try again"
            )
        os.replace(self.part, self.path)
        sync_folder(self.path.parent)

    def _read(self) -> _Record | None:
        try:
            return _Record.of(json.loads(self._record.read_text(encoding="utf-8")))
        # Without its record a part is only bytes of unknown origin, and is downloaded anew.
        except (OSError, ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True)
class _Record:
    """What the hub says of the file, and what was there when a download last ended."""

    remote: Remote
    bytes: int
    sha256: str

    def write(self, path: Path) -> None:
        atomic_write(path, json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")

    @staticmethod
    def of(content: dict[str, Any]) -> _Record:
        return _Record(Remote(**content["remote"]), int(content["bytes"]), str(content["sha256"]))


def _sha256(path: Path, size: int) -> str:
    """sha256 (hex) of the first `size` bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size and (piece := file.read(min(size, 2**20))):
            digest.update(piece)
            size -= len(piece)
    return digest.hexdigest()


def _git_sha1(path: Path) -> str:
    """The id that git gives the file's content, which is the hub's ETag for small files."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
