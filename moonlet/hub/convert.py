"""From one folder to another in another form, tensor by tensor: a terabyte takes the memory of its largest few.

| from | to a form without quantised weights | to one with |
|---|---|---|
| BF16, F16, F32 | converted | quantised |
| FP8, INT4, MXFP4 | multiplied out | multiplied out in fp32 and quantised; where the scheme is the same, copied |

A folder of the very form that is asked for is copied bit by bit: names, index and config.json become what this package
writes. Vision towers, stale frequencies and layers that predict further tokens stay behind, and so does code.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moonlet.config.json_file import read_json
from moonlet.hub.card import CARD_FILE, card, may_write, training_of
from moonlet.hub.checkpoint import Checkpoint, Stored, checkpoint_of, empty_model
from moonlet.hub.encoding import FORMS, Encoding
from moonlet.hub.names import EMBEDDING, HEAD, stays_fp32
from moonlet.hub.quantization import SCHEMES
from moonlet.hub.read import fill, stored_whole
from moonlet.hub.shards import SHARD_BYTES, Planned, write_folder
from moonlet.hub.source import DTYPES, open_source, read_into
from moonlet.hub.write import config_texts

# What travels with the weights: a tokenizer and the licence. No code, whatever config.json calls for.
_BESIDE = re.compile(
    r"(tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|"
    r"[\w.-]+\.(model|tiktoken)|chat_template\.(jinja|json)|generation_config\.json|(LICENSE|NOTICE)[\w.-]*)$"
)
_TEMPORARY = re.compile(r"\.(model[\w-]*\.safetensors(\.index\.json)?|[\w.]+)\.\d+\.tmp$")

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Converted:
    """What was written: bytes of tensors, and numbers in the weights they stand for."""

    nbytes: int
    weights: int

    @property
    def bits(self) -> float:
        """Bits a weight, scales included."""
        return 8 * self.nbytes / max(1, self.weights)


def convert(
    source: str | Path,
    destination: str | Path,
    format: str,
    max_shard_bytes: float = SHARD_BYTES,
    overwrite: bool = False,
    origin: str | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], object] | None = None,
) -> Converted:
    """Write the model in `source` to `destination` in another form, with its tokenizer and a card.

    Args:
        source: a Hugging Face directory.
        destination: a folder; a new or an empty one, unless `overwrite`.
        format: one of `encoding.FORMS`.
        max_shard_bytes: beyond so many bytes of tensors there are several files and an index.
        overwrite: whether `destination` may hold something; a model in it is replaced, other files stay.
        origin: what the new card calls the source; None: by the name of its folder.
        progress: called with the bytes that were written so far, and all.
        notice: called with each line a person should know, as that a vision tower is left behind.

    Raises:
        FileNotFoundError: no model in `source`.
        ValueError: a format that is not known, a folder that is not read, a destination that is not free, or too little
            room on its disk.
        OSError: the destination cannot be written.
    """
    source, destination = Path(source), Path(destination)
    if format not in FORMS:
        raise ValueError(f"format is {format!r}; valid: {', '.join(map(repr, FORMS))}")
    _check_destination(source, destination, overwrite)
    checkpoint = checkpoint_of(open_source(source))
    stored = stored_whole(checkpoint, empty_model(checkpoint))
    if checkpoint.config.tie_word_embeddings and checkpoint.layout.tied_head:
        stored[HEAD] = stored[EMBEDDING]
    job = _Job(checkpoint, Encoding.of(format), _form(checkpoint, stored) == format)
    planned = [tensor for name, weight in stored.items() for tensor in job.plan(name, weight)]
    total, done = sum(tensor.nbytes for tensor in planned), 0
    _check_room(destination, total)
    for line in checkpoint.notices() if notice is not None else ():
        notice(line)  # type: ignore[misc]

    def tell(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    tensors = (pair for name, weight in stored.items() for pair in job.make(name, weight))
    write_folder(
        destination,
        planned,
        tensors,
        _files(job, format, destination, origin or source.resolve().name),
        max_shard_bytes,
        tell,
    )
    return Converted(total, sum(prod(weight.shape) for weight in stored.values()))


@dataclass(frozen=True)
class _Job:
    """What becomes of each weight of a checkpoint.

    same: whether it is in the wanted form already.
    """

    checkpoint: Checkpoint
    encoding: Encoding
    same: bool

    def plan(self, name: str, stored: Stored) -> list[Planned]:
        """What `make` will give."""
        if self._copied(name, stored):
            return [Planned(_part(name, part), entry.dtype, entry.shape) for part, entry in stored.parts.items()]
        return self.encoding.plan(name, self._dtype(name, stored), stored.shape)

    def make(self, name: str, stored: Stored) -> Iterator[tuple[str, Tensor]]:
        """The tensors on disk for one weight."""
        if self._copied(name, stored):
            for part, entry in stored.parts.items():
                values = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
                _check_finite(read_into(entry, values), entry.name)
                yield _part(name, part), values
            return
        weight = torch.empty(stored.shape, dtype=self._dtype(name, stored))
        _check_finite(fill(stored, weight), stored.name)
        yield from self.encoding.encode(name, weight)

    def _dtype(self, name: str, stored: Stored) -> torch.dtype:
        """What a weight is read as: to be quantised, with all its bits; else as it will be written, rounded once."""
        if stored.scheme is None:
            dtype = DTYPES[next(iter(stored.parts.values())).dtype]
            return dtype if self._quantised(name, stored) else self.encoding.dtype_of(name, dtype)
        return torch.float32 if self._quantised(name, stored) else self.encoding.dtype_of(name, torch.bfloat16)

    def _quantised(self, name: str, stored: Stored) -> bool:
        return self.encoding.scheme(name, stored.shape) is not None

    def _copied(self, name: str, stored: Stored) -> bool:
        """Whether a weight's own bits are what is wanted."""
        if stored.scheme is None or self.same:
            return self.same
        alike = stored.scheme == "fp8" or stored.group == self.encoding.quantization.group_size
        return alike and self.encoding.scheme(name, stored.shape) == stored.scheme

    def quantization_config(self) -> dict[str, Any] | None:
        """What config.json says of all this: of what is copied its own table, for names without a wrapper's prefix."""
        if not self.same:
            return self.encoding.quantization.to_config()
        if not self.checkpoint.wrapper:
            own: dict[str, Any] | None = read_json(self.checkpoint.source.folder / "config.json").get(
                "quantization_config"
            )
            return own
        kept = self.checkpoint.quantization
        targets, ignored = (
            tuple(dict.fromkeys(name.removeprefix(self.checkpoint.prefix) for name in names))
            for names in (kept.targets, kept.ignored)
        )
        return replace(kept, targets=targets, ignored=ignored).to_config()


def _part(name: str, part: str) -> str:
    """The name of one of the tensors that hold the weight `name`."""
    return name.removesuffix(name.rsplit(".", 1)[-1]) + part


def _check_finite(finite: bool, name: str) -> None:
    if not finite:
        raise ValueError(f"{name} holds NaN or infinite numbers")


def _form(checkpoint: Checkpoint, stored: Mapping[str, Stored]) -> str | None:
    """Which of FORMS a folder is in already; None: another."""
    schemes = {weight.scheme for weight in stored.values()}
    if schemes != {None}:
        return checkpoint.quantization.method
    dtypes = {entry.dtype for name, w in stored.items() if not stays_fp32(name) for entry in w.parts.values()}
    return {"F32": "fp32", "BF16": "bf16"}.get(dtypes.pop()) if len(dtypes) == 1 else None


def _check_destination(source: Path, destination: Path, overwrite: bool) -> None:
    if destination.exists() and not destination.is_dir():
        raise ValueError(f"{destination} is a file; give a folder")
    if destination.resolve() == source.resolve():
        raise ValueError(f"{destination} is the source as well; give another folder")
    if destination.is_dir() and any(destination.iterdir()):
        if not overwrite:
            raise ValueError(f"{destination} is not empty; give another folder, or --overwrite")
        # What a conversion that was killed has left.
        for path in destination.iterdir():
            if _TEMPORARY.match(path.name):
                path.unlink()


def _check_room(destination: Path, needed: int) -> None:
    """Better said before hours of work than after."""
    there = next(path for path in (destination, *destination.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ValueError(f"{destination} needs {needed:,} bytes, and its disk has {free:,} left")


def _files(job: _Job, format: str, destination: Path, origin: str) -> Mapping[str, str | Path]:
    """Everything beside the weights: config.json, the tokenizer, and a card where that is free."""
    checkpoint, source = job.checkpoint, job.checkpoint.source.folder
    dtype = DTYPES[checkpoint.embedding_dtype] if job.same else job.encoding.dtype
    assert dtype is not None
    # Layers that predict further tokens are not read, and so are not written.
    config = checkpoint.config.replace(num_nextn_predict_layers=0, dtype=str(dtype).removeprefix("torch."))
    files: dict[str, str | Path] = dict(config_texts(config, job.quantization_config()))
    files |= {path.name: path for path in sorted(source.iterdir()) if path.is_file() and _BESIDE.match(path.name)}
    if may_write(destination):
        scheme = format if format in SCHEMES else None
        name, training = destination.resolve().name, training_of(source)
        files[CARD_FILE] = card(name, config, scheme, training, None if job.same else origin)
    return files
