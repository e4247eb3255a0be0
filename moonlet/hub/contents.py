"""What a folder holds, told from its headers: dtypes, files, formats, bits a weight, and what its config does not say.

Nothing is refused here: what is wrong is told, so that a person can look into any checkpoint, also one that is damaged
or that this package cannot compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from moonlet.config.json_file import read_json
from moonlet.hub.checkpoint import PLAIN, Checkpoint, checkpoint_of, empty_model, match
from moonlet.hub.source import DTYPES, INDEX_FILE, Source, scan


@dataclass(frozen=True)
class Amount:
    """So many tensors of so many numbers, in so many bytes."""

    tensors: int = 0
    numbers: int = 0
    nbytes: int = 0

    def plus(self, numbers: int, nbytes: int) -> Amount:
        """With one tensor more."""
        return Amount(self.tensors + 1, self.numbers + numbers, self.nbytes + nbytes)


@dataclass(frozen=True)
class Contents:
    """What lies in a folder.

    dtypes: all tensors, by safetensors' word for their dtype.
    formats: the model's weights by how they are stored, numbers being those they stand for.
    files: bytes of each safetensors file.
    notices: what is no part of the model, and that code in the folder is not run.
    differences: where config.json, index and tensors do not say the same; empty where all fits.
    refused: why this package cannot compute the model, where it cannot.
    """

    dtypes: dict[str, Amount]
    formats: dict[str, Amount]
    files: dict[str, int]
    notices: tuple[str, ...]
    differences: tuple[str, ...]
    refused: str | None = None

    @property
    def nbytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())

    @property
    def bits_a_weight(self) -> float | None:
        """Of the model's weights, scales included; None where they are not known."""
        numbers = sum(amount.numbers for amount in self.formats.values())
        return 8 * sum(amount.nbytes for amount in self.formats.values()) / numbers if numbers else None


def holds_weights(folder: Path) -> bool:
    """Whether `folder` is a model's directory with safetensors to look into."""
    return (folder / INDEX_FILE).is_file() or any(folder.glob("*.safetensors"))


def look_into(folder: str | Path) -> Contents:
    """Read the headers in `folder` and compare them with config.json.

    Raises:
        FileNotFoundError: no such folder, or no weights in it.
        ValueError: pickled weights only, or an index that is none.
    """
    source = scan(folder)
    dtypes: dict[str, Amount] = {}
    for entry in source.tensors.values():
        dtypes[entry.dtype] = dtypes.get(entry.dtype, Amount()).plus(prod(entry.shape), entry.nbytes)
    files = {path.name: size for path, size in source.files.items()}
    notices = [f"{name} is named by no index and not read" for name in source.unused]
    differences = [*source.problems, *_index_total(source)]
    try:
        checkpoint = checkpoint_of(source)
        model = empty_model(checkpoint)
    except (ValueError, FileNotFoundError) as error:
        return Contents(dtypes, {}, files, tuple(notices), tuple(differences), str(error))
    stored, problems = match(checkpoint, model)
    formats: dict[str, Amount] = {}
    for weight in stored.values():
        kind: str = weight.scheme or "".join(entry.dtype for entry in weight.parts.values())
        formats[kind] = formats.get(kind, Amount()).plus(prod(weight.shape), weight.nbytes)
    if checkpoint.remote_code:
        notices.append("config.json names code of its own (auto_map), which is never run; moonlet computes this model")
    differences += [*problems, *_dtype_of_config(checkpoint)]
    return Contents(dtypes, formats, files, (*checkpoint.notices(), *notices), tuple(differences))


def contents_as_values(contents: Contents) -> dict[str, Any]:
    """`contents` for JSON."""

    def amounts(table: dict[str, Amount]) -> dict[str, dict[str, int]]:
        return {
            kind: {"tensors": amount.tensors, "numbers": amount.numbers, "bytes": amount.nbytes}
            for kind, amount in table.items()
        }

    return {
        "bytes": contents.nbytes,
        "files": contents.files,
        "dtypes": amounts(contents.dtypes),
        "formats": amounts(contents.formats),
        "bits_per_weight": contents.bits_a_weight,
        "notices": list(contents.notices),
        "differences": list(contents.differences),
        "refused": contents.refused,
    }


def _index_total(source: Source) -> list[str]:
    """Where an index's total_size is not the tensors' bytes."""
    path = source.folder / INDEX_FILE
    if not path.is_file() or source.problems:
        return []
    metadata = read_json(path).get("metadata")
    said = metadata.get("total_size") if isinstance(metadata, dict) else None
    held = sum(entry.nbytes for entry in source.tensors.values())
    return [] if said in (None, held) else [f"{INDEX_FILE} says total_size {said!s:.40}, and the tensors have {held}"]


def _dtype_of_config(checkpoint: Checkpoint) -> list[str]:
    """Where the weights that are stored as they are have another dtype than config.json says."""
    found = {entry.dtype for entry in checkpoint.tensors.values() if len(entry.shape) > 1} & set(PLAIN)
    said = checkpoint.config.dtype
    names = {kind: str(DTYPES[kind]).removeprefix("torch.") for kind in found}
    if not found or said in names.values():
        return []
    return [f"config.json says {said}, and the weights are {' and '.join(sorted(names.values()))}"]
