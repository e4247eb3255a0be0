"""Which layers are KDA, and their sizes: the table `linear_attn_config` of Kimi Linear's config.json.

Its lists count layers from one. A layer in neither list is full attention, as the published code reads it: it asks
`kda_layers` alone, and a list may lack the last layer, which breaks the pattern of three to one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from moonlet.config.kinds import check_kinds
from moonlet.config.nearest import unknown


@dataclass(frozen=True)
class LinearAttention:
    """Kimi delta attention: `num_heads` heads of width `head_dim`, for keys and for values alike.

    kda_layers: 1-indexed; the order in the file does not matter.
    """

    head_dim: int
    num_heads: int
    kda_layers: tuple[int, ...]
    short_conv_kernel_size: int = 4

    def __post_init__(self) -> None:
        check_kinds(self, "linear_attn_config.")
        for name in ("head_dim", "num_heads", "short_conv_kernel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"linear_attn_config.{name} is {getattr(self, name)}; it must be at least 1")
        object.__setattr__(self, "kda_layers", tuple(sorted(self.kda_layers)))

    @property
    def width(self) -> int:
        """Channels of all heads together: rows of each of the q, k and v projections."""
        return self.num_heads * self.head_dim

    def to_dict(self, layers: int) -> dict[str, Any]:
        """The table as files hold it, for a model of `layers` layers: both lists, complete."""
        full = [layer for layer in range(1, layers + 1) if layer not in self.kda_layers]
        return {
            "head_dim": self.head_dim,
            "num_heads": self.num_heads,
            "short_conv_kernel_size": self.short_conv_kernel_size,
            "kda_layers": list(self.kda_layers),
            "full_attn_layers": full,
        }


def read_linear_attention(data: Mapping[str, Any]) -> LinearAttention:
    """Read the table of a file or a recipe.

    Raises:
        ValueError: an unknown or missing key, or a layer that both lists name.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"linear_attn_config is {data!r}; it must be a table, or null")
    given = dict(data)
    full = _layers("full_attn_layers", given.pop("full_attn_layers", ()))
    valid = [f.name for f in fields(LinearAttention)]
    for name in given:
        if name not in valid:
            raise unknown("linear_attn_config key", name, [*valid, "full_attn_layers"])
    missing = [name for name in ("head_dim", "num_heads", "kda_layers") if name not in given]
    if missing:
        raise ValueError(f"linear_attn_config lacks {' and '.join(missing)}")
    given["kda_layers"] = _layers("kda_layers", given["kda_layers"])
    twice = sorted(set(given["kda_layers"]) & set(full))
    if twice:
        raise ValueError(f"linear_attn_config: layer {twice[0]} is in kda_layers and in full_attn_layers")
    return LinearAttention(**given)


def _layers(name: str, value: Any) -> tuple[int, ...]:
    right = isinstance(value, list | tuple) and all(isinstance(n, int) and not isinstance(n, bool) for n in value)
    if not right:
        raise ValueError(f"linear_attn_config.{name} is {value!r}; it must be a list of layers, counted from 1")
    if len(set(value)) < len(value):
        raise ValueError(f"linear_attn_config.{name} names a layer twice")
    return tuple(value)
