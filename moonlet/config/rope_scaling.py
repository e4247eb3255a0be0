"""How positions are stretched beyond the length a model was trained at; `factor` is how far.

| type | frequency of pair i, plain f_i = theta^(-2i/P) | length it starts from |
|---|---|---|
| linear | f_i / factor (arXiv 2306.15595) | none: all positions are divided |
| dynamic | f_i of theta (factor n / M - factor + 1)^(P/(P-2)), n the length reached, where n > M | M = max_position_embeddings |
| yarn | f_i for fast pairs, f_i / factor for slow ones, a ramp between (arXiv 2309.00071) | original_max_position_embeddings |

The lengths are those of the official files: with yarn, `max_position_embeddings` is the length after stretching and the
table names the one before; with dynamic, `max_position_embeddings` itself is the one before, and texts may grow to
factor times that (`ModelConfig.context_limit`).
"""  # noqa: E501 (a table's rows)

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from moonlet.config.kinds import check_kinds
from moonlet.config.nearest import unknown

TYPES = ("yarn", "linear", "dynamic")
_VALID = ", ".join(map(repr, TYPES))


@dataclass(frozen=True)
class RopeScaling:
    """One table `rope_scaling`. Everything below `type` but the original length is YaRN's alone."""

    factor: float
    original_max_position_embeddings: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    type: str = "yarn"
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise ValueError(f"rope_scaling.type is {self.type!r}; valid: {_VALID}, or no rope_scaling at all")
        check_kinds(self, "rope_scaling.")
        if self.factor < 1:
            raise ValueError(f"rope_scaling.factor is {self.factor}; it must be at least 1")
        if self.type == "yarn":
            self._check_yarn()
            return
        for f in fields(self):
            if f.name not in ("factor", "type", "original_max_position_embeddings"):
                given = getattr(self, f.name)
                if given != f.default:
                    raise ValueError(f"rope_scaling.{f.name} is {given} with type {self.type!r}; only 'yarn' uses it")
        if self.type == "linear":  # nothing depends on where it started from
            object.__setattr__(self, "original_max_position_embeddings", 0)

    def _check_yarn(self) -> None:
        original = self.original_max_position_embeddings
        if original < 1:
            raise ValueError(f"rope_scaling.original_max_position_embeddings is {original}; it must be at least 1")
        for name in ("beta_fast", "beta_slow"):
            if getattr(self, name) <= 0:
                raise ValueError(f"rope_scaling.{name} is {getattr(self, name)}; it must be larger than 0")
        if self.attention_factor is not None and self.attention_factor <= 0:
            raise ValueError(f"rope_scaling.attention_factor is {self.attention_factor}; it must be larger than 0")

    def magnitude(self, a: float) -> float:
        """YaRN's m(s, a) = 0.1 a ln(s) + 1 for s > 1, else 1."""
        return 0.1 * a * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    @property
    def rotation_multiplier(self) -> float:
        """What cos and sin are multiplied by.

        YaRN: `attention_factor` where it is given, else m(s, mscale) / m(s, mscale_all_dim), 1.0 for every published
        Kimi, or m(s, 1) where one of the two is 0. The others: 1.0.
        """
        if self.type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self.magnitude(self.mscale) / self.magnitude(self.mscale_all_dim)
        return self.magnitude(1.0)

    @property
    def softmax_multiplier(self) -> float:
        """What MLA's softmax scale is multiplied by: m(s, mscale_all_dim)^2 (1.8133 for Kimi-K2)."""
        return self.magnitude(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    def to_dict(self) -> dict[str, Any]:
        """The table as files hold it: the keys that mean something to this type."""
        out: dict[str, Any] = {"type": self.type, "factor": self.factor}
        if self.type == "yarn":
            out |= {f.name: getattr(self, f.name) for f in fields(self) if f.name not in out}
            if self.attention_factor is None:
                del out["attention_factor"]
        elif self.original_max_position_embeddings:
            out["original_max_position_embeddings"] = self.original_max_position_embeddings
        return out


def read_scaling(data: Mapping[str, Any]) -> RopeScaling | None:
    """Read the table `rope_scaling` of a file or a recipe; None where it asks for plain positions."""
    if not isinstance(data, Mapping):
        raise ValueError(f"rope_scaling is {data!r}; it must be a table, or null")
    given = dict(data)
    # Older files say "type", newer "rope_type"; transformers also writes these into the same table.
    kind = given.pop("rope_type", None) or given.pop("type", None)
    for other in ("type", "rope_theta", "partial_rotary_factor"):
        given.pop(other, None)
    if kind == "default" or (kind is None and not given):
        return None
    if kind is None:
        raise ValueError(f"rope_scaling gives {', '.join(given)} and no type; valid: {_VALID}")
    if kind not in TYPES:
        raise ValueError(f"rope_scaling.type is {kind!r}; valid: {_VALID}, or no rope_scaling at all")
    valid = [f.name for f in fields(RopeScaling)]
    for name in given:
        if name not in valid:
            raise unknown("rope_scaling key", name, valid)
    needed = ("factor", "original_max_position_embeddings") if kind == "yarn" else ("factor",)
    missing = [name for name in needed if name not in given]
    if missing:
        raise ValueError(f"rope_scaling lacks {' and '.join(missing)}")
    return RopeScaling(type=kind, **given)
