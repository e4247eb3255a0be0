"""The documents of files, streamed; the same text gives the same documents in every format.

    .txt      documents between lines that hold `<|endoftext|>` alone, or the whole file as one
    .jsonl    one JSON object a line; the document is its field "text", or another
    .parquet  one row a document; the document is its column "text", or another (extra: pyarrow)

A document loses the white space around it, and empty ones are dropped. What is malformed is an error that names file
and line (of parquet: the row), never a document less.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from moonlet.data import lines
from moonlet.data.files import find_files, format_of
from moonlet.data.lines import read_lines, too_long
from moonlet.text.atomic import atomic_file

SEPARATOR = "<|endoftext|>"
SPLIT_BY = ("separator", "file")


def read_documents(path: str | Path, field: str = "text", split_by: str = "separator") -> Iterator[str]:
    """Stream the documents of a file, a folder or a glob; see `find_files`.

    Args:
        path: what to read.
        field: the field of a JSON line or the column of a parquet file; "a.b" is field b of the object in a.
        split_by: how a .txt file is split: "separator", or "file" for one document a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is malformed or holds no document; names file and line.
    """
    check_split_by(split_by)
    for file in find_files(path):
        yield from file_documents(file, field, split_by)


def file_documents(path: Path, field: str = "text", split_by: str = "separator") -> Iterator[str]:
    """The documents of one file; see `read_documents`."""
    kind = format_of(path)
    found = False
    if kind == "parquet":
        from moonlet.data.parquet import parquet_texts

        texts = parquet_texts(path, field)
    elif kind == "json lines":
        texts = _json_texts(path, field)
    else:
        texts = _whole_text(path) if split_by == "file" else _separated_texts(path)
    for text in texts:
        if document := text.strip():
            found = True
            yield document
    if not found:
        raise ValueError(f"{path}: no document in it, {_NOTHING[kind]}")


_NOTHING = {
    "text": f"only white space and {SEPARATOR} lines",
    "json lines": "only empty lines and empty texts",
    "parquet": "no row with a text that is not empty",
    None: "only white space",
}


def check_split_by(split_by: str) -> None:
    """Raise ValueError unless `split_by` is a way to split."""
    if split_by not in SPLIT_BY:
        raise ValueError(f"split_by is {split_by!r}; valid: {', '.join(SPLIT_BY)}")


def write_documents(documents: Iterable[str], path: Path) -> tuple[int, int]:
    """Write documents as a text file that `read_documents` reads, atomically.

    Returns:
        The number of documents and their UTF-8 bytes, separators not counted.
    """
    count, size = 0, 0
    with atomic_file(Path(path)) as file:
        for document in documents:
            data = document.encode("utf-8")
            file.write(data + f"\n{SEPARATOR}\n".encode())
            count, size = count + 1, size + len(data)
    return count, size


def _separated_texts(path: Path) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for number, line in read_lines(path):
        # Most lines are told apart by their first letter, which is faster than to strip them.
        if SEPARATOR in line and line.strip() == SEPARATOR:
            yield "".join(held)
            held, size = [], 0
            continue
        held.append(line)
        size += len(line)
        if size > lines.MAX_DOCUMENT_BYTES:
            raise too_long(path, number, "document")
    yield "".join(held)


def _whole_text(path: Path) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for number, line in read_lines(path):
        held.append(line)
        size += len(line)
        if size > lines.MAX_DOCUMENT_BYTES:
            raise too_long(path, number, "document")
    yield "".join(held)


def _json_texts(path: Path, field: str) -> Iterator[str]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            cut = error.pos >= len(line.rstrip()) or error.msg.startswith("Unterminated string")
            end = "; the line is cut off" if cut else ""
            raise ValueError(f"{path}, line {number}: not valid JSON, column {error.colno}: {error.msg}{end}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: JSON that cannot be read ({error})") from None
        yield _text_of(value, field, f"{path}, line {number}")


def _text_of(value: object, field: str, place: str) -> str:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: {_kind(value)}, not an object; each line must be one, like {{{field!r}: ...}}")
    found: object = value
    # A field whose own name has a dot comes before a path through objects.
    for name in [field] if field in value else field.split("."):
        if not isinstance(found, dict) or name not in found:
            has = ", ".join(map(repr, value)) or "none"
            raise ValueError(f"{place}: no field {field!r} (fields: {has}); name the one that holds the text")
        found = found[name]
    if not isinstance(found, str):
        raise ValueError(f"{place}: field {field!r} is {_kind(found)}, not a string")
    if not found.isascii():
        check_scalars(found, place)
    return found


def check_scalars(text: str, place: str) -> None:
    """Raise ValueError where `text` holds half a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place}: a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which is no text"
        ) from None


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
