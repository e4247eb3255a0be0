"""Reading a Hugging Face directory: config.json, and safetensors files with or without an index.

Everything is checked against the model's shapes before any weight is read, and all that is wrong is said at once.
Only safetensors are read: no pickles, no code from a model's folder.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from moonlet.config import ModelConfig
from moonlet.hub.names import skipped, split
from moonlet.model.model import CausalLM

_MAX_PROBLEMS = 8
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def read_model(folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> CausalLM:
    """Read the model in `folder`.

    Args:
        folder: a Hugging Face directory.
        device: where the weights shall lie.
        dtype: what they are converted to; None keeps the dtype of the file. The routers' correction bias stays fp32.

    Raises:
        FileNotFoundError: no config.json or no weights.
        ValueError: missing, extra or mis-shaped tensors, a dtype this reader does not know, or a damaged file.
    """
    folder = Path(folder)
    config = ModelConfig.from_file(folder)
    files = _tensor_files(folder)
    with torch.device("meta"):
        model = CausalLM(config)
    wanted = {disk: list(part.shape) for name, value in model.state_dict().items() for disk, part in split(name, value)}
    readers = {path: _open(path) for path in sorted(set(files.values()))}
    _check(config, folder, wanted, files, readers)
    embedding = readers[files[_EMBEDDING]].get_tensor(_EMBEDDING)
    if config.tie_word_embeddings and _HEAD in files:
        _check_tied(folder, embedding, readers[files[_HEAD]].get_tensor(_HEAD))
    model.to(dtype or embedding.dtype)
    for router in (m for m in model.modules() if hasattr(m, "e_score_correction_bias")):
        router.e_score_correction_bias = router.e_score_correction_bias.float()
    model.to_empty(device=device)
    for buffer in model.buffers():
        buffer.zero_()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            for disk, part in split(name, value):
                part.copy_(readers[files[disk]].get_tensor(disk))
    return model


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


def _check(
    config: ModelConfig, folder: Path, wanted: dict[str, list[int]], files: dict[str, Path], readers: dict[Path, Any]
) -> None:
    problems = []
    for name in sorted(set(files) | set(wanted)):
        if name not in files:
            problems.append(f"{name} is missing")
            continue
        if skipped(name, config) or (name == _HEAD and config.tie_word_embeddings):
            continue
        try:
            found = readers[files[name]].get_slice(name)
        except SafetensorError:
            problems.append(f"{name} is not in {files[name].name}, though the index says so")
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
