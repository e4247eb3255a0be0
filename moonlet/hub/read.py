"""Reading a Hugging Face directory: config.json, and safetensors files with or without an index.

Everything is checked against the model's shapes before any weight is read, and all that is wrong is said at once.
Only safetensors are read: no pickles, no code from a model's folder.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from moonlet.config import ModelConfig
from moonlet.hub.names import layout_of, skipped, stays_fp32
from moonlet.model.model import CausalLM

_MAX_PROBLEMS = 8
# transformers joins tensors in memory, and can be told to save them so.
_JOINED = re.compile(r"\.experts\.(gate_up_proj|down_proj)$|\.self_attn\.(forget_gate|conv1d)\.")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def read_model(folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> CausalLM:
    """Read the model in `folder`.

    Args:
        folder: a Hugging Face directory.
        device: where the weights shall lie.
        dtype: what they are converted to; None keeps the dtype of the file. The routers' correction bias and the
            decay rates of KDA are fp32 either way.

    Raises:
        FileNotFoundError: no config.json or no weights.
        ValueError: missing, extra or mis-shaped tensors, a dtype this reader does not know, or a damaged file.
    """
    folder = Path(folder)
    config = ModelConfig.from_file(folder)
    layout = layout_of(config)
    files = _tensor_files(folder)
    with torch.device("meta"):
        model = CausalLM(config)
    state = model.state_dict()
    wanted = {disk: list(part.shape) for name, value in state.items() for disk, part in layout.split(name, value)}
    readers = {path: _open(path) for path in sorted(set(files.values()))}
    tensors = {layout.published(name, files): Stored(name, path, readers[path]) for name, path in files.items()}
    _check(config, folder, wanted, tensors)
    embedding = tensors[_EMBEDDING].read()
    if config.tie_word_embeddings and _HEAD in tensors:
        _check_tied(folder, embedding, tensors[_HEAD].read())
    model.to(dtype or embedding.dtype)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if stays_fp32(name):
            value.data = value.data.float()
    model.to_empty(device=device)
    for buffer in model.buffers():
        buffer.zero_()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            for disk, part in layout.split(name, value):
                part.copy_(tensors[disk].read())
    return model


@dataclass(frozen=True)
class Stored:
    """One tensor of a folder: its name there, its file, and the open file."""

    name: str
    path: Path
    reader: Any

    def read(self) -> torch.Tensor:
        """Its values, on the CPU."""
        return self.reader.get_tensor(self.name)  # type: ignore[no-any-return]

    def slice(self) -> Any:
        """Its shape and dtype, without its values; raises SafetensorError where the file lacks it."""
        return self.reader.get_slice(self.name)


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _read_index(index)
    single = folder / "model.safetensors"
    if not single.is_file():
        others = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if others:
            raise ValueError(f"{folder} holds {others[0]} and no safetensors; pickled weights are not loaded")
        raise FileNotFoundError(f"no model.safetensors in {folder}")
    return dict.fromkeys(_open(single).keys(), single)


def _read_index(index: Path) -> dict[str, Path]:
    try:
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError):
        table = None
    if not isinstance(table, dict):
        raise ValueError(f"{index} is not a safetensors index with a weight_map")
    for name, file in table.items():
        if not isinstance(file, str) or file in ("", "..") or Path(file).name != file:
            raise ValueError(f"{index}: {name} points at {file!r}, outside its folder")
    return {name: index.parent / file for name, file in table.items()}


def _open(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}, though its index names it")
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, struct.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _check_tied(folder: Path, embedding: torch.Tensor, head: torch.Tensor) -> None:
    """Some files hold a tied matrix twice; it must be the same one."""
    if not torch.equal(embedding, head):
        raise ValueError(
            f"{folder}: tie_word_embeddings is true and {_HEAD} differs from {_EMBEDDING}; one of the two is wrong"
        )


def _check(config: ModelConfig, folder: Path, wanted: dict[str, list[int]], tensors: dict[str, Stored]) -> None:
    joined = next((stored.name for stored in tensors.values() if _JOINED.search(stored.name)), None)
    if joined is not None:
        raise ValueError(
            f"{folder} holds {joined}, a tensor as transformers has it in memory; save it in the published layout, "
            "which is what save_pretrained does unless save_original_format is false"
        )
    problems = []
    for name in sorted(set(tensors) | set(wanted)):
        if name not in tensors:
            problems.append(f"{name} is missing")
            continue
        stored = tensors[name]
        if skipped(name, config) or (name == _HEAD and config.tie_word_embeddings):
            continue
        try:
            found = stored.slice()
        except SafetensorError:
            problems.append(f"{name} is not in {stored.path.name}, though the index says so")
            continue
        shape, dtype = list(found.get_shape()), found.get_dtype()
        if name not in wanted:
            # transformers writes shared experts of width 0 as empty tensors; here they do not exist.
            problems += [f"{name} is not part of this model"] * (0 not in shape)
        elif shape != wanted[name]:
            problems.append(f"{name} has shape {shape}, expected {wanted[name]}")
        elif dtype not in ("F32", "BF16", "F16", "F64"):
            problems.append(f"{name} is stored as {dtype}; this reader knows F32, BF16, F16 and F64")
    if problems:
        more = f" (and {len(problems) - _MAX_PROBLEMS} more)" if len(problems) > _MAX_PROBLEMS else ""
        raise ValueError(f"{folder}: {'; '.join(problems[:_MAX_PROBLEMS])}{more}")
