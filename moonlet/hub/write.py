"""Writing a model as a Hugging Face directory: config.json and model.safetensors in the official names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from moonlet.hub.names import layout_of
from moonlet.model.model import CausalLM
from moonlet.text.atomic import atomic_path, atomic_write


def write_model(model: CausalLM, folder: Path, special_ids: dict[str, int] | None = None) -> None:
    """Write config.json and model.safetensors into `folder`, each atomically, weights in the dtype they have.

    Args:
        special_ids: bos_token_id, eos_token_id, pad_token_id, where the configuration does not name them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layout = layout_of(model.config)
    tensors: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        for disk_name, part in layout.split(name, value.detach()):
            tensors[disk_name] = part.contiguous().cpu()
    if model.config.tie_word_embeddings and layout.tied_head:
        tensors["lm_head.weight"] = model.lm_head.weight.detach().cpu().clone()
    write_tensors(tensors, folder / "model.safetensors")
    atomic_write(folder / "config.json", json.dumps(config_dict(model, special_ids), indent=2, sort_keys=True) + "\n")


def write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file so that `path` holds its old bytes or all of the new ones."""
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def config_dict(model: CausalLM, special_ids: dict[str, int] | None = None) -> dict[str, Any]:
    """The config.json of `model`, with its weights' dtype."""
    config = model.config.replace(
        dtype=str(model.lm_head.weight.dtype).removeprefix("torch."),
        **{k: v for k, v in (special_ids or {}).items() if getattr(model.config, k) is None},
    )
    return config.to_dict()
