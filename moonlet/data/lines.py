"""The lines of a text file, packed or not, each with its number; no line is ever larger than memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, cast

from moonlet.data.files import PACKED

# One document is held in memory whole, its tokens beside it; text beyond this is a file without separators.
MAX_DOCUMENT_BYTES = 2**27


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line, line ends as they are.

    Raises:
        ValueError: a line is not UTF-8 or longer than a document may be, or a packed file is damaged; names file and
            line.
    """
    number = 0
    try:
        with _open(path) as file:
            for number, raw in enumerate(iter(partial(file.readline, MAX_DOCUMENT_BYTES + 1), b""), start=1):
                if len(raw) > MAX_DOCUMENT_BYTES:
                    raise too_long(path, number, "line")
                yield number, _decode(path, number, raw)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}, line {number + 1}: damaged gzip data ({error}); make or download it anew") from None


def too_long(path: Path, number: int, what: str) -> ValueError:
    """The error for a line or document beyond `MAX_DOCUMENT_BYTES`."""
    return ValueError(
        f"{path}, line {number}: this {what} is longer than {MAX_DOCUMENT_BYTES:,} bytes, the most that one document "
        f"may have; put lines with <|endoftext|> between documents"
    )


def _open(path: Path) -> IO[bytes]:
    if path.name.lower().endswith(PACKED):
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _decode(path: Path, number: int, raw: bytes) -> str:
    try:
        # Windows editors put a byte order mark in front, which is no part of the text.
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        encoding = "utf-16" if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
        raise ValueError(
            f"{path}, line {number}: byte 0x{raw[error.start]:02x} at column {error.start + 1} is not UTF-8; convert "
            f"the file, e.g. `iconv -f {encoding} -t utf-8`"
        ) from None
