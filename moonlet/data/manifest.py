"""manifest.json: what a folder of token shards holds, and from what it was made.

It is written last, so a folder with a manifest is complete and a folder without one is not. It holds no time and no
machine, so preparing the same corpus twice gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moonlet.text.atomic import atomic_write
from moonlet.text.tokenizer import Tokenizer

SCHEMA = 2
# Schema 1 did not count the bytes of each document.
READABLE = (1, SCHEMA)
MANIFEST_FILE = "manifest.json"
DTYPES = {"uint16": 2, "uint32": 4}


@dataclass(frozen=True)
class FileInfo:
    """One binary file: its name in the folder, the numbers it holds, and the sha256 of its bytes."""

    file: str
    count: int
    sha256: str


@dataclass(frozen=True)
class SplitInfo:
    """One split: documents, tokens ([BOS] and [EOS] included), UTF-8 bytes of the documents, and its files.

    `shards` hold the tokens one after another. `offsets` holds documents + 1 little-endian uint64: where each document
    starts in the token stream, and where the last one ends. `sizes` holds documents little-endian uint32: the UTF-8
    bytes of each document's text, which the tokens of a lossy tokenizer do not tell; None in a data set of schema 1.
    """

    documents: int
    tokens: int
    bytes: int
    shards: tuple[FileInfo, ...]
    offsets: FileInfo
    sizes: FileInfo | None = None


@dataclass(frozen=True)
class Manifest:
    """Everything about a prepared data set.

    Attributes:
        name: the corpus, for people.
        synthetic: whether a program made the text.
        corpus: the corpus's own description.
        tokenizer: kind, content_hash and vocab_size.
        dtype: "uint16" or "uint32", little-endian.
        floor: bits per byte that no model can beat on "valid", or None.
        splits: "train" and "valid".
    """

    name: str
    synthetic: bool
    corpus: dict[str, object]
    tokenizer: dict[str, object]
    dtype: str
    floor: float | None
    splits: dict[str, SplitInfo]
    schema: int = SCHEMA

    def write(self, folder: Path) -> None:
        """Write manifest.json atomically."""
        atomic_write(
            folder / MANIFEST_FILE, json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        )


def read_manifest(folder: Path) -> Manifest:
    """Read manifest.json.

    Raises:
        FileNotFoundError: there is none, so the folder is no finished data set.
        ValueError: it is malformed; names file and problem.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; run `moonlet data prepare` to make the data set") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    try:
        if content["schema"] not in READABLE:
            raise ValueError(f"{path}: schema {content['schema']} is not among {READABLE}, those this version reads")
        manifest = Manifest(**{**content, "splits": {name: _split(info) for name, info in content["splits"].items()}})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a manifest ({type(error).__name__}: {error})") from None
    if manifest.dtype not in DTYPES:
        raise ValueError(f"{path}: dtype {manifest.dtype!r} is not one of {', '.join(DTYPES)}")
    return manifest


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, object]:
    """The tokenizer's part of the manifest."""
    return {
        "kind": tokenizer.kind,
        "content_hash": tokenizer.content_hash(),
        "vocab_size": tokenizer.vocab_size,
    }


def same_data(manifest: Manifest, corpus: Mapping[str, object], tokenizer: Tokenizer) -> bool:
    """Whether the manifest's tokens are those of this corpus (by its description) and tokenizer."""
    # Through JSON, because that is what the manifest went through: a tuple comes back as a list.
    wanted = json.loads(json.dumps(without_paths(corpus)))
    same_tokenizer = manifest.tokenizer.get("content_hash") == tokenizer.content_hash()
    return same_tokenizer and without_paths(manifest.corpus) == wanted


def without_paths(value: object) -> object:
    """A file that was moved is still the same file, for its sha256 stands beside the path."""
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items() if key != "path"}
    return [without_paths(item) for item in value] if isinstance(value, list | tuple) else value


def _split(info: dict[str, Any]) -> SplitInfo:
    return SplitInfo(
        **{
            **info,
            "shards": tuple(FileInfo(**shard) for shard in info["shards"]),
            "offsets": FileInfo(**info["offsets"]),
            "sizes": FileInfo(**info["sizes"]) if info.get("sizes") else None,
        }
    )
