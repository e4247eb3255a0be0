"""The texts in one column of a parquet file, read a few rows at a time (extra: pyarrow)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moonlet.data import lines

# Rows decoded at once; few, because a row may be a book.
_ROWS = 256


def parquet_texts(path: Path, column: str) -> Iterator[str]:
    """The texts of `column`, row after row; "a.b" is field b of the struct in column a.

    Raises:
        ValueError: pyarrow is missing, the file is damaged, there is no such column, it holds no strings, or a row is
            null; names file and, where there is one, the row (from 0).
    """
    pyarrow, parquet = _library()
    row = 0
    try:
        with path.open("rb") as source:
            # A buffer, and no reading ahead: else a column chunk of hundreds of megabytes is read at once.
            file = parquet.ParquetFile(source, buffer_size=2**20, pre_buffer=False)
            _check_column(path, file.schema_arrow, column, pyarrow)
            for batch in file.iter_batches(batch_size=_ROWS, columns=[column], use_threads=False):
                for value in _values(batch, column):
                    yield _checked(value, path, column, row)
                    row += 1
    except (pyarrow.ArrowException, EOFError, OSError) as error:
        # pyarrow raises plain OSError for damage too; one with a number is the system's own.
        if isinstance(error, OSError) and error.errno:
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{path}, row {row}: damaged parquet data ({reason}); make or download it anew") from None


def parquet_size(path: Path, column: str) -> int:
    """Bytes of a column's texts, unpacked, from the file's own statistics; 0 where there is no such column.

    Raises:
        ValueError: pyarrow is missing, or the file is damaged.
    """
    pyarrow, parquet = _library()
    try:
        facts = parquet.read_metadata(path)
    except (pyarrow.ArrowException, EOFError) as error:
        raise ValueError(f"{path}: damaged parquet data ({' '.join(str(error).split())})") from None
    chunks = (facts.row_group(g).column(c) for g in range(facts.num_row_groups) for c in range(facts.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)


def _library() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError('reading .parquet needs pyarrow; install it with `pip install "moonlet[parquet]"`') from None
    return pyarrow, pyarrow.parquet


def _check_column(path: Path, schema: Any, column: str, pyarrow: Any) -> None:
    kind = None
    if column in schema.names:
        kind = schema.field(column).type
    else:
        first, *rest = column.split(".")
        if first in schema.names:
            kind = schema.field(first).type
            for name in rest:
                known = pyarrow.types.is_struct(kind) and kind.get_field_index(name) >= 0
                kind = kind.field(name).type if known else None
                if kind is None:
                    break
    if kind is None:
        has = ", ".join(map(repr, schema.names)) or "none"
        raise ValueError(f"{path}: no column {column!r} (columns: {has}); name the one that holds the text")
    inner = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not (pyarrow.types.is_string(inner) or pyarrow.types.is_large_string(inner)):
        raise ValueError(f"{path}: column {column!r} holds {kind}, not strings")


def _values(batch: Any, column: str) -> Any:
    if column in batch.schema.names:
        return batch.column(column)
    first, *rest = column.split(".")
    values = batch.column(first)
    import pyarrow.compute

    for name in rest:
        values = pyarrow.compute.struct_field(values, name)
    return values


def _checked(value: Any, path: Path, column: str, row: int) -> str:
    try:
        text: str | None = value.as_py()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, row {row}: byte 0x{error.object[error.start]:02x} at position {error.start} is not UTF-8"
        ) from None
    if text is None:
        raise ValueError(f"{path}, row {row}: column {column!r} is null, not a string")
    if len(text) > lines.MAX_DOCUMENT_BYTES:
        raise ValueError(
            f"{path}, row {row}: a document of {len(text):,} characters; {lines.MAX_DOCUMENT_BYTES:,} bytes is the most"
        )
    return text
