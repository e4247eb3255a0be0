"""Everything that can be said of a model from its configuration alone, as plain values.

The modules are built on the meta device, so a model of a trillion parameters takes a second and no memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from math import prod
from typing import Any

from torch import Size

from moonlet.config import ModelConfig
from moonlet.model.count import (
    Counts,
    cache_bytes_per_token,
    conv_cache_bytes,
    count,
    full_cache_bytes_per_token,
    shapes,
    state_bytes,
)
from moonlet.model.flops import Flops, flops_per_token

USUAL_CONTEXT = 4096


@dataclass(frozen=True)
class Description:
    """A model's tensors, sizes and operations.

    context: keys a token attends to in `flops` and `decode`.
    flops: of one token of a text read at once.
    decode: of one token generated behind a cache.
    """

    config: ModelConfig
    tensors: Mapping[str, Size]
    counts: Counts
    context: int
    flops: Flops
    decode: Flops

    @property
    def cache_bytes(self) -> int:
        """Of one token, over all layers, in bf16."""
        return cache_bytes_per_token(self.config)

    @property
    def full_cache_bytes(self) -> int:
        """What whole keys and values of every head would take, in bf16."""
        return full_cache_bytes_per_token(self.config)

    @property
    def state_bytes(self) -> int:
        """Of KDA's states of one text, over all layers, in fp32; whatever its length."""
        return state_bytes(self.config)

    @property
    def conv_bytes(self) -> int:
        """Of the last inputs of KDA's convolutions, likewise, in bf16."""
        return conv_cache_bytes(self.config)


def describe(config: ModelConfig, context: int | None = None) -> Description:
    """Measure a model of any size.

    Args:
        context: keys a token attends to, for its operations; None: `usual_context(config)`.

    Raises:
        ValueError: a context the model has no positions for.
    """
    context = usual_context(config) if context is None else context
    tensors = shapes(config)
    flops = flops_per_token(config, context, tensors=tensors)
    decode = flops_per_token(config, context, absorbed=True, tensors=tensors)
    return Description(config, tensors, count(config, tensors), context, flops, decode)


def usual_context(config: ModelConfig) -> int:
    """Keys to count operations with where none are asked for: 4,096, or all positions of a smaller model."""
    return min(USUAL_CONTEXT, config.context_limit)


def as_values(description: Description, name: str) -> dict[str, Any]:
    """`description` for JSON."""
    config, counts, flops = description.config, description.counts, description.flops
    return {
        "name": name,
        "layers": config.num_hidden_layers,
        "kda_layers": [i for i in range(config.num_hidden_layers) if config.is_kda(i)],
        "parameters": {"total": counts.total, **counts.parts},
        "active_per_token": {
            "without_embedding_and_head": counts.active,
            "with_head": counts.active_with_head,
            "with_head_and_embedding": counts.active_with_embedding,
        },
        "flops_per_token": {
            "context": description.context,
            "forward": {"total": flops.total, **flops.parts},
            "training": flops.training,
            "decode": {"total": description.decode.total, **description.decode.parts},
        },
        "cache_bytes_per_token": {
            "latent_bf16": description.cache_bytes,
            "full_heads_bf16": description.full_cache_bytes,
        },
        "cache_bytes_constant": {
            "states_fp32": description.state_bytes,
            "convolutions_bf16": description.conv_bytes,
        },
        "weights_bytes_bf16": 2 * counts.total,
        "softmax_scale": config.softmax_scale,
        "rope_theta": config.rope_theta,
        "rope_scaling": asdict(config.rope_scaling) if config.rope_scaling else None,
        "max_position_embeddings": config.max_position_embeddings,
        "tensors": {tensor: list(shape) for tensor, shape in description.tensors.items()},
    }


@dataclass(frozen=True)
class Group:
    """Layers with the same tensors, as ranges, or (`layers` None) the tensors outside of layers."""

    layers: tuple[range, ...] | None
    tensors: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def number(self) -> int:
        """How many layers these are; 1 outside of layers."""
        return 1 if self.layers is None else sum(map(len, self.layers))

    @property
    def size(self) -> int:
        """Parameters of one such layer."""
        return sum(prod(shape) for _, shape in self.tensors)


def group_layers(tensors: Mapping[str, Sequence[int]]) -> list[Group]:
    """Collapse layers that look alike, wherever they are, into the first of them, keeping the order of the modules."""
    prefix = "model.layers."

    def layer_of(item: tuple[str, tuple[int, ...]]) -> int | None:
        name = item[0]
        return int(name.removeprefix(prefix).split(".", 1)[0]) if name.startswith(prefix) else None

    groups: list[Group] = []
    for layer, items in groupby(((name, tuple(shape)) for name, shape in tensors.items()), key=layer_of):
        if layer is None:
            groups.append(Group(None, tuple(items)))
            continue
        inner = tuple((name.removeprefix(f"{prefix}{layer}."), shape) for name, shape in items)
        alike = next((i for i, group in enumerate(groups) if group.layers and group.tensors == inner), None)
        if alike is None:
            groups.append(Group((range(layer, layer + 1),), inner))
        else:
            groups[alike] = Group(_extended(groups[alike].layers or (), layer), inner)
    return groups


def _extended(ranges: tuple[range, ...], layer: int) -> tuple[range, ...]:
    """`ranges` and a layer behind all of them."""
    *before, last = ranges
    return (*before, range(last.start, layer + 1)) if last.stop == layer else (*ranges, range(layer, layer + 1))
