"""ModelConfig: one frozen dataclass whose fields are the keys of the official config.json.

Reads the published files of Kimi-K2 (Base, Instruct, Thinking), Moonlight-16B-A3B and DeepSeek-V3, and what
transformers writes for `deepseek_v3`. The families spell some keys differently; the differences end here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from moonlet.config.nearest import unknown

MODEL_TYPES = ("deepseek_v3", "kimi_k2")
DTYPES = ("float32", "bfloat16", "float16", "float64")

# Keys that published files carry and that change nothing this package computes.
_IGNORED = {
    "_name_or_path", "architectures", "attention_dropout", "auto_map", "ep_size", "head_dim", "model_type",
    "output_router_logits", "pretraining_tp", "qk_head_dim", "quantization_config", "transformers_version",
    "use_cache",
}  # fmt: skip

# Another spelling of a field, as found in some family's file.
_ALIASES = {
    "torch_dtype": "dtype",
    "num_local_experts": "n_routed_experts",
    "num_mtp_layers": "num_nextn_predict_layers",
}

# Settings this package computes in one way only: a file that asks for another is refused, never misread.
_FIXED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "hidden_act": ("silu",),
    "rope_interleave": (True,),
    "topk_method": ("noaux_tc",),
}


@dataclass(frozen=True)
class RopeScaling:
    """YaRN (arXiv 2309.00071) as the family uses it; `factor` is new context over original context."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    type: str = "yarn"

    def __post_init__(self) -> None:
        if self.type != "yarn":
            raise ValueError(f"rope_scaling.type is {self.type!r}; valid: 'yarn', or no rope_scaling at all")
        _check_types(self, "rope_scaling.")
        for name in ("factor", "original_max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"rope_scaling.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("beta_fast", "beta_slow"):
            if getattr(self, name) <= 0:
                raise ValueError(f"rope_scaling.{name} is {getattr(self, name)}; it must be larger than 0")

    def magnitude(self, a: float) -> float:
        """YaRN's m(s, a) = 0.1 a ln(s) + 1 for s > 1, else 1."""
        return 0.1 * a * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    @property
    def rotation_multiplier(self) -> float:
        """What cos and sin are multiplied by: m(s, mscale) / m(s, mscale_all_dim), 1.0 for every published Kimi."""
        if self.mscale and self.mscale_all_dim:
            return self.magnitude(self.mscale) / self.magnitude(self.mscale_all_dim)
        return self.magnitude(1.0)

    @property
    def softmax_multiplier(self) -> float:
        """What the softmax scale is multiplied by: m(s, mscale_all_dim)^2 (1.8133 for Kimi-K2)."""
        return self.magnitude(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one model. Field names are the official ones; every width is a count of channels."""

    vocab_size: int = 163840
    hidden_size: int = 7168
    num_hidden_layers: int = 61
    num_attention_heads: int = 64
    num_key_value_heads: int = 64
    # MLA: widths of the latents and of the parts of each head.
    q_lora_rank: int | None = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    # Channel mixing: the first layers are dense, the others a mixture of experts.
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    n_routed_experts: int = 384
    n_shared_experts: int = 1
    num_experts_per_tok: int = 8
    first_k_dense_replace: int = 1
    moe_layer_freq: int = 1
    n_group: int = 1
    topk_group: int = 1
    scoring_func: str = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.827
    aux_loss_alpha: float = 0.001
    seq_aux: bool = True
    # Positions.
    max_position_embeddings: int = 131072
    rope_theta: float = 50000.0
    rope_scaling: RopeScaling | None = None
    # The rest.
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    num_nextn_predict_layers: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    dtype: str = "bfloat16"
    # Where this was read from; shown to people, never compared or saved.
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        _check_types(self)
        self._check_positive()
        self._check_experts()
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim is {self.qk_rope_head_dim}; it must be even, rope turns pairs")
        if self.num_key_value_heads != self.num_attention_heads:
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads} and num_attention_heads "
                f"{self.num_attention_heads}; with MLA both must be equal"
            )
        if self.scoring_func != "sigmoid":
            raise ValueError(f"scoring_func is {self.scoring_func!r}; valid: 'sigmoid'")
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings is true; valid: false (no published model of the family ties them)")

    def _check_positive(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim",
            "qk_rope_head_dim", "v_head_dim", "intermediate_size", "max_position_embeddings", "n_group", "topk_group",
            "moe_layer_freq",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.q_lora_rank is not None and self.q_lora_rank < 1:
            raise ValueError(f"q_lora_rank is {self.q_lora_rank}; it must be at least 1, or null for a single q_proj")
        for name in ("n_shared_experts", "n_routed_experts", "first_k_dense_replace"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        for name, least in (("rms_norm_eps", 0), ("routed_scaling_factor", 0), ("rope_theta", 1)):
            if getattr(self, name) <= least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be larger than {least}")
        if self.initializer_range < 0:
            raise ValueError(f"initializer_range is {self.initializer_range}; it must be at least 0")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; valid: {', '.join(map(repr, DTYPES))}")

    def _check_experts(self) -> None:
        if not self.n_routed_experts:
            return
        if self.moe_intermediate_size < 1:
            raise ValueError(f"moe_intermediate_size is {self.moe_intermediate_size}; it must be at least 1")
        if self.n_routed_experts % self.n_group:
            raise ValueError(f"n_routed_experts {self.n_routed_experts} is not a multiple of n_group {self.n_group}")
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group {self.topk_group} exceeds n_group {self.n_group}")
        reachable = self.topk_group * (self.n_routed_experts // self.n_group)
        if not 1 <= self.num_experts_per_tok <= reachable:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}; it must lie in 1..{reachable}, "
                "the experts of topk_group groups"
            )
        if self.n_group > 1 and self.n_routed_experts // self.n_group < 2:
            raise ValueError(
                f"n_group {self.n_group} leaves {self.n_routed_experts // self.n_group} expert a group; "
                "a group's score is the sum of its two best, so it needs at least 2"
            )

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key head, K + P."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """(K + P)^-1/2, times YaRN's m(factor, mscale_all_dim)^2 where it is on."""
        scale: float = self.qk_head_dim**-0.5
        return scale * self.rope_scaling.softmax_multiplier if self.rope_scaling else scale

    def is_moe(self, layer: int) -> bool:
        """Whether layer `layer` (0-indexed) holds a mixture of experts."""
        return bool(self.n_routed_experts) and layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0

    def replace(self, **changes: Any) -> ModelConfig:
        """Return a copy with some fields changed; an unknown field is a ValueError naming the nearest valid one."""
        valid = field_names()
        for name in changes:
            if name not in valid:
                raise unknown("model setting", name, valid)
        scaling = changes.get("rope_scaling")
        if isinstance(scaling, Mapping):
            changes["rope_scaling"] = _read_scaling(scaling)
        return replace(self, **changes)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "") -> ModelConfig:
        """Read an official config.json.

        Raises:
            ValueError: an unknown key, an unknown model_type, or a value this package cannot compute with; the
                message names the field, the value and what would be valid.
        """
        return _from_dict(data, source)

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Read `path`, a config.json or a folder holding one."""
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"no config.json at {path}")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(data, dict):
            raise ValueError(f"{path} holds {type(data).__name__}, expected a JSON object")
        return _from_dict(data, str(path))

    def to_dict(self) -> dict[str, Any]:
        """Return the official config.json, in the DeepSeek-V3 form that transformers, vLLM and SGLang read.

        `model_type` is always `deepseek_v3`: it is the form Kimi-K2's own weights have, and transformers refuses
        the label `kimi_k2`.
        """
        out: dict[str, Any] = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"}
        for f in fields(self):
            if f.name not in ("source", "rope_scaling"):
                out[f.name] = getattr(self, f.name)
        scaling = self.rope_scaling
        out["rope_scaling"] = None if scaling is None else {g.name: getattr(scaling, g.name) for g in fields(scaling)}
        out["torch_dtype"] = out.pop("dtype")
        out |= {name: values[0] for name, values in _FIXED.items()}
        return out | {"attention_dropout": 0.0, "use_cache": True}


_KINDS = {"int": "a whole number", "float": "a finite number", "bool": "true or false", "str": "a text"}


def _check_types(settings: ModelConfig | RopeScaling, prefix: str = "") -> None:
    """Raise ValueError for a value of another type than its field's: JSON and TOML say nothing of types."""
    for f in fields(settings):
        value, (kind, _, null) = getattr(settings, f.name), str(f.type).partition(" | ")
        if kind not in _KINDS or (null and value is None):
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        right = {
            "int": number and isinstance(value, int),
            "float": number and math.isfinite(value),
            "bool": isinstance(value, bool),
            "str": isinstance(value, str),
        }[kind]
        if not right:
            raise ValueError(f"{prefix}{f.name} is {value!r}; it must be {_KINDS[kind]}{' or null' if null else ''}")


def field_names() -> list[str]:
    """Names of the settings a file or a recipe may give."""
    return [f.name for f in fields(ModelConfig) if f.name != "source"]


def _from_dict(data: Mapping[str, Any], source: str) -> ModelConfig:
    where = f"{source}: " if source else ""
    try:
        model_type = data.get("model_type", "deepseek_v3")
        if model_type not in MODEL_TYPES:
            raise ValueError(f"model_type is {model_type!r}; valid: {', '.join(map(repr, MODEL_TYPES))}")
        values: dict[str, Any] = {}
        known = set(field_names())
        for given, value in data.items():
            name = _ALIASES.get(given, given)
            if name in _FIXED:
                if value not in _FIXED[name]:
                    raise ValueError(f"{given} is {value!r}; valid: {', '.join(map(repr, _FIXED[name]))}")
            elif name == "rope_parameters":
                values |= _read_rope_parameters(value)
            elif name == "rope_scaling":
                values[name] = _read_scaling(value) if value else None
            elif name in known:
                values[name] = value
            elif name not in _IGNORED:
                raise unknown("config key", given, known | set(_ALIASES) | _IGNORED | set(_FIXED))
        return ModelConfig(**_tidy(values), source=source)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}{error}") from None


def _tidy(values: dict[str, Any]) -> dict[str, Any]:
    """Resolve nulls and lists that published files use into the one form the dataclass holds."""
    for name in ("n_routed_experts", "n_shared_experts", "first_k_dense_replace"):
        if name in values and values[name] is None:
            values[name] = 0
    for name in ("n_group", "topk_group"):
        if values.get(name, 1) is None:
            values[name] = 1
    if "dtype" in values and values["dtype"] is None:
        del values["dtype"]
    if isinstance(values.get("eos_token_id"), list):
        values["eos_token_id"] = next(iter(values["eos_token_id"]), None)
    if values.get("num_key_value_heads") is None and "num_attention_heads" in values:
        values["num_key_value_heads"] = values["num_attention_heads"]
    return values


def _read_scaling(data: Mapping[str, Any]) -> RopeScaling | None:
    if not isinstance(data, Mapping):
        raise ValueError(f"rope_scaling is {data!r}; it must be a table, or null")
    given = dict(data)
    # Older files say "type", newer "rope_type"; transformers also writes rope_theta into the same table.
    kind = given.pop("rope_type", None) or given.pop("type", None)
    given.pop("type", None)
    given.pop("rope_theta", None)
    if kind == "default" or (kind is None and not given):
        return None
    if kind is None:
        raise ValueError(f"rope_scaling gives {', '.join(given)} and no type; valid: 'yarn'")
    valid = [f.name for f in fields(RopeScaling)]
    for name in given:
        if name not in valid:
            raise unknown("rope_scaling key", name, valid)
    missing = [name for name in ("factor", "original_max_position_embeddings") if name not in given]
    if missing:
        raise ValueError(f"rope_scaling lacks {' and '.join(missing)}")
    return RopeScaling(type=kind, **given)


def _read_rope_parameters(data: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 keeps rope_theta and the scaling in one table."""
    out: dict[str, Any] = {"rope_scaling": _read_scaling(data)}
    if "rope_theta" in data:
        out["rope_theta"] = data["rope_theta"]
    return out
