"""Which layers are KDA, and their sizes: the table `linear_attn_config` of Kimi Linear's config.json.

Its lists count layers from one. A layer in neither list is full attention, as the published code reads it: it asks
`kda_layers` alone, and a list may lack the last layer, which breaks the pattern of three to one. A table without KDA
layers is that of a model with attention in every layer; its sizes say nothing and are the published ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from moonlet.config.kinds import check_kinds
from moonlet.config.nearest import unknown

_HEAD_DIM, _NUM_HEADS, _KERNEL = 128, 32, 4  # as published


@dataclass(frozen=True)
class LinearAttention:
    """Kimi delta attention: `num_heads` heads of width `head_dim`, for keys and for values alike.

    kda_layers: 1-indexed; the order in the file does not matter.
    """

    head_dim: int = _HEAD_DIM
    num_heads: int = _NUM_HEADS
    kda_layers: tuple[int, ...] = ()
    short_conv_kernel_size: int = _KERNEL

    def __post_init__(self) -> None:
        check_kinds(self, "linear_attn_config.")
        for name in ("head_dim", "num_heads", "short_conv_kernel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"linear_attn_config.{name} is {getattr(self, name)}; it must be at least 1")
        layers = tuple(sorted(_layers("kda_layers", self.kda_layers)))
        settled: dict[str, Any] = {"kda_layers": layers}
        if not layers:
            settled |= {"head_dim": _HEAD_DIM, "num_heads": _NUM_HEADS, "short_conv_kernel_size": _KERNEL}
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    @property
    def width(self) -> int:
        """Channels of all heads together: rows of each of the q, k and v projections."""
        return self.num_heads * self.head_dim

    def check_layers(self, layers: int) -> None:
        """Raise ValueError for a KDA layer that a model of `layers` layers does not have."""
        beyond = [layer for layer in self.kda_layers if layer > layers]
        if beyond:
            kept = [layer for layer in self.kda_layers if layer <= layers]
            raise ValueError(
                f"linear_attn_config.kda_layers names layer {beyond[0]} and num_hidden_layers is {layers}; "
                f"give both, as with linear_attn_config.kda_layers={kept}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The table as a recipe holds it: with one list, from which the other follows."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"kda_layers": list(self.kda_layers)}

    def changed(self, changes: Mapping[str, Any], layers: int) -> dict[str, Any]:
        """The table with single values changed, for a model that then has `layers` layers.

        One list given alone decides about the other; sizes of a table without KDA layers are not carried over.
        """
        out = (self.to_dict() if self.kda_layers else {}) | dict(changes)
        if "full_attn_layers" in changes and "kda_layers" not in changes:
            out["kda_layers"] = other_layers(_layers("full_attn_layers", changes["full_attn_layers"]), layers)
        return out


def read_linear_attention(data: Mapping[str, Any], layers: int) -> LinearAttention:
    """Read the table of a file or a recipe, for a model of `layers` layers.

    Raises:
        ValueError: an unknown or missing key, a layer that both lists name, or one that the model does not have.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"linear_attn_config is {data!r}; it must be a table, or null")
    given = dict(data)
    full = _layers("full_attn_layers", given.pop("full_attn_layers", ()))
    valid = [f.name for f in fields(LinearAttention)]
    for name in given:
        if name not in valid:
            raise unknown("linear_attn_config key", name, [*valid, "full_attn_layers"])
    needed = ("head_dim", "num_heads", "kda_layers") if given.get("kda_layers", True) else ()
    missing = [name for name in needed if name not in given]
    if missing:
        raise ValueError(f"linear_attn_config lacks {' and '.join(missing)}")
    table = LinearAttention(**given)
    twice = sorted(set(table.kda_layers) & set(full))
    if twice:
        raise ValueError(f"linear_attn_config: layer {twice[0]} is in kda_layers and in full_attn_layers")
    table.check_layers(layers)
    if max(full, default=0) > layers:
        raise ValueError(
            f"linear_attn_config.full_attn_layers names layer {max(full)} and num_hidden_layers is {layers}"
        )
    return table


def other_layers(named: Collection[int], layers: int) -> list[int]:
    """Of the layers 1 .. `layers` those that are not `named`."""
    return [layer for layer in range(1, layers + 1) if layer not in named]


def _layers(name: str, value: Any) -> tuple[int, ...]:
    right = isinstance(value, list | tuple) and all(isinstance(n, int) and not isinstance(n, bool) for n in value)
    if not right:
        raise ValueError(f"linear_attn_config.{name} is {value!r}; it must be a list of layers, counted from 1")
    if len(set(value)) < len(value):
        raise ValueError(f"linear_attn_config.{name} names a layer twice")
    if value and min(value) < 1:
        raise ValueError(f"linear_attn_config.{name} names layer {min(value)}; layers are counted from 1")
    return tuple(value)
