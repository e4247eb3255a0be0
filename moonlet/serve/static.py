"""The page: every file of `moonlet/serve/page/`, read once, each at a path of its own.

Files are read when the server starts and never by a path that a client sent, so there is nothing outside the folder
that a path could reach. `index.html` is "/", and what lies beside it is called by its name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}


@dataclass(frozen=True)
class PageFile:
    """One file of the page."""

    path: str
    """Where a browser finds it: "/", "/app.js", ..."""
    content: bytes
    media_type: str
    etag: str


def page_files(folder: Path = FOLDER) -> list[PageFile]:
    """The files of a page; links, hidden files and kinds that no page needs are left out."""
    found = []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        inside = path.relative_to(folder)
        plain = path.is_file() and not path.is_symlink() and not any(part.startswith(".") for part in inside.parts)
        if not plain or path.suffix not in _TYPES or not path.resolve().is_relative_to(folder.resolve()):
            continue
        content = path.read_bytes()
        address = "/" if inside.as_posix() == "index.html" else f"/{inside.as_posix()}"
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        found.append(PageFile(address, content, _TYPES[path.suffix], etag))
    return found
