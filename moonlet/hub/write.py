"""Writing a model as a Hugging Face directory in the official names: config.json, weights, generation_config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from moonlet.config import ModelConfig
from moonlet.hub.encoding import Encoding
from moonlet.hub.names import layout_of
from moonlet.hub.packed import BUFFER, packed_weights, split_packed, weight_shapes
from moonlet.hub.quantization import Quantization
from moonlet.hub.shards import SHARD_BYTES, write_folder
from moonlet.model.model import CausalLM
from moonlet.model.packed import packed_scheme
from moonlet.ops.low_bit_codes import Packed
from moonlet.text.atomic import atomic_path

GENERATION_FILE = "generation_config.json"
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_model(
    model: CausalLM,
    folder: Path,
    special_ids: dict[str, int] | None = None,
    format: str | None = None,
    max_shard_bytes: float = SHARD_BYTES,
) -> None:
    """Write `model` into `folder`, where a reader finds the old model, the new one, or none, but never half of one.

    Args:
        special_ids: bos_token_id, eos_token_id, pad_token_id, where the configuration does not name them.
        format: one of `encoding.FORMS`; None writes the weights in the dtype they have.
        max_shard_bytes: beyond so many bytes of tensors there are several files and an index.

    Raises:
        ValueError: a format that is not known, or numbers that it cannot hold.
        OSError: the disk is full, or the folder cannot be written.
    """
    scheme = packed_scheme(model)
    # Blocks of FP8 are written for all of a model's matrices, of which only the experts' are packed in memory.
    kept = scheme is not None and scheme != "fp8" and format in (None, scheme)
    encoding = Encoding.of(format if kept else format or scheme)
    planned = [p for name, part in _on_disk(model, kept) for p in encoding.plan(name, _dtype(model, part), part.shape)]
    tensors = (pair for name, part in _on_disk(model, kept) for pair in encoding.encode(name, _whole(model, part)))
    dtype = str(encoding.dtype or model.lm_head.weight.dtype).removeprefix("torch.")
    quantization = Quantization.of(scheme) if kept else encoding.quantization
    texts = config_texts(named(model.config, special_ids).replace(dtype=dtype), quantization.to_config())
    write_folder(folder, planned, tensors, texts, max_shard_bytes)


def _on_disk(model: CausalLM, kept: bool) -> Iterator[tuple[str, Tensor | Packed]]:
    """Every tensor that the model's layout has on disk, as a view of the model's.

    Args:
        kept: whether of packed experts codes and scales are written as they are, and not the weights they stand for.
    """
    layout = layout_of(model.config)
    for name, value in model.state_dict().items():
        if kept or not BUFFER.match(name):
            yield from split_packed(layout, name, value.detach())
    yield from weight_shapes(layout, model).items() if kept else packed_weights(layout, model)
    if model.config.tie_word_embeddings and layout.tied_head:
        yield "lm_head.weight", model.lm_head.weight.detach()


def _dtype(model: CausalLM, part: Tensor | Packed) -> torch.dtype:
    return part.dtype if isinstance(part, Tensor) else model.lm_head.weight.dtype


def _whole(model: CausalLM, part: Tensor | Packed) -> Tensor:
    """The numbers themselves; what will be quantised again is exact in fp32."""
    return part if isinstance(part, Tensor) else part.dequantize(torch.float32)


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file so that `path` holds its old bytes or all of the new ones."""
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def named(config: ModelConfig, special_ids: dict[str, int] | None) -> ModelConfig:
    """`config` with the ids that it leaves open."""
    return config.replace(**{k: v for k, v in (special_ids or {}).items() if getattr(config, k) is None})


def config_texts(config: ModelConfig, quantization: dict[str, Any] | None) -> dict[str, str]:
    """config.json, and generation_config.json where it has something to say, by their names."""
    texts = {"config.json": config.to_dict() | ({"quantization_config": quantization} if quantization else {})}
    ids = {name: getattr(config, name) for name in _IDS if getattr(config, name) is not None}
    if "eos_token_id" in ids:
        texts[GENERATION_FILE] = ids
    return {name: _json(content) for name, content in texts.items()}


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
