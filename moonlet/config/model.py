"""ModelConfig: one frozen dataclass whose fields are the keys of the official config.json.

Reads the published files of Kimi-K2 (Base, Instruct, Thinking), Moonlight-16B-A3B, Kimi-Linear-48B-A3B and DeepSeek-V3,
what transformers writes for `deepseek_v3` and `kimi_linear`, and the `glm4_moe` and `llama` files of models with
grouped-query attention. The families spell some keys differently; the differences end in `official.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from moonlet.config.json_file import read_json, shown
from moonlet.config.kinds import check_kinds
from moonlet.config.linear_attention import LinearAttention, read_linear_attention
from moonlet.config.nearest import unknown
from moonlet.config.official import read_official, write_official
from moonlet.config.rope_scaling import RopeScaling, read_scaling

DTYPES = ("float32", "bfloat16", "float16", "float64")
SCORING = ("sigmoid", "softmax")
# Beyond these no tensor could be addressed, and saying anything of a model would fail somewhere in its making.
MAX_LAYERS, MAX_NUMBER, MAX_WIDTH, MAX_VOCABULARY = 4096, 1 << 16, 1 << 20, 1 << 30
_NUMBERS = ("num_attention_heads", "num_key_value_heads", "n_routed_experts", "n_shared_experts")
_WIDTHS = (
    "hidden_size", "head_dim", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
    "intermediate_size", "moe_intermediate_size",
)  # fmt: skip

# Fields that say nothing without the part they describe, and the one value they then hold: equal models have equal
# configurations. Without MLA's latent, without rope, and without experts (where every layer is a dense one).
_WITHOUT_LATENT = {
    "q_lora_rank": None, "qk_nope_head_dim": 0, "qk_rope_head_dim": 0, "v_head_dim": 0, "mla_use_nope": False,
}  # fmt: skip
_WITHOUT_ROPE = {"rope_theta": 10000.0}
_WITHOUT_EXPERTS = {
    "moe_intermediate_size": 0, "n_shared_experts": 0, "num_experts_per_tok": 0, "moe_layer_freq": 1, "n_group": 1,
    "topk_group": 1, "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 1.0,
    "aux_loss_alpha": 0.001, "seq_aux": True, "num_nextn_predict_layers": 0,
}  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one model. Field names are the official ones; every width is a count of channels.

    `kv_lora_rank` chooses the attention: MLA with a number, grouped-query attention with null. `linear_attn_config`
    replaces it by KDA in some layers, and `mla_use_nope` leaves out its rope; with either the model is of Kimi Linear's
    form, and has a `linear_attn_config`, if one without layers. `n_routed_experts` 0 makes every layer dense. Fields of
    the part that is not there are set to nothing (0, null), so that equal models have equal configurations.
    """

    vocab_size: int = 163840
    hidden_size: int = 7168
    num_hidden_layers: int = 61
    num_attention_heads: int = 64
    num_key_value_heads: int = 64
    # GQA: width of a head (0: hidden_size / num_attention_heads), and the part of it that rope turns.
    head_dim: int = 0
    partial_rotary_factor: float = 1.0
    # MLA: widths of the latents and of the parts of each head.
    q_lora_rank: int | None = 1536
    kv_lora_rank: int | None = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    mla_use_nope: bool = False  # nothing is rotated: the part that rope would turn stays as it is
    # KDA instead of attention in some layers; null: in none.
    linear_attn_config: LinearAttention | None = None
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
    # What the published file says of its training; a run of moonlet follows its recipe's optim.aux_loss_alpha.
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
        check_kinds(self)
        self._settle()
        self._check_positive()
        self._check_attention()
        self._check_experts()
        self._check_scaling()
        self._check_linear()

    def _settle(self) -> None:
        """Give the fields of parts that are not there their one value, and `head_dim` its number."""
        settled: dict[str, Any] = {}
        if self.kv_lora_rank is not None:
            settled["head_dim"] = 0
            if self.mla_use_nope:
                settled |= _WITHOUT_ROPE | {"linear_attn_config": self.linear_attn_config or LinearAttention()}
        else:
            settled = dict(_WITHOUT_LATENT)
            if not self.head_dim and self.num_attention_heads > 0:
                if self.hidden_size % self.num_attention_heads:
                    raise ValueError(
                        f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                        f"{self.num_attention_heads}; give head_dim"
                    )
                settled["head_dim"] = self.hidden_size // self.num_attention_heads
        if not self.n_routed_experts:
            settled |= _WITHOUT_EXPERTS | {"first_k_dense_replace": self.num_hidden_layers}
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    def _check_positive(self) -> None:
        names = [
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "intermediate_size", "max_position_embeddings", "n_group", "topk_group", "moe_layer_freq",
        ]  # fmt: skip
        latent = ["kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"]
        for name in names + (["head_dim"] if self.kv_lora_rank is None else latent):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.q_lora_rank is not None and self.q_lora_rank < 1:
            raise ValueError(f"q_lora_rank is {self.q_lora_rank}; it must be at least 1, or null for a single q_proj")
        # Every layer is built, if without memory, before anything can be said of a model.
        most = {"num_hidden_layers": MAX_LAYERS, "vocab_size": MAX_VOCABULARY}
        most |= dict.fromkeys(_NUMBERS, MAX_NUMBER) | dict.fromkeys(_WIDTHS, MAX_WIDTH)
        for name, limit in most.items():
            if (getattr(self, name) or 0) > limit:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at most {limit}")
        for name in ("n_shared_experts", "n_routed_experts", "first_k_dense_replace"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        for name, least in (("rms_norm_eps", 0), ("routed_scaling_factor", 0), ("rope_theta", 1)):
            if getattr(self, name) <= least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be larger than {least}")
        if self.initializer_range < 0:
            raise ValueError(f"initializer_range is {self.initializer_range}; it must be at least 0")
        for name, valid in (("dtype", DTYPES), ("scoring_func", SCORING)):
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} is {getattr(self, name)!r}; valid: {', '.join(map(repr, valid))}")

    def _check_attention(self) -> None:
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if self.kv_lora_rank is not None:
            if self.qk_rope_head_dim % 2:
                raise ValueError(f"qk_rope_head_dim is {self.qk_rope_head_dim}; it must be even, rope turns pairs")
            if groups != heads:
                raise ValueError(
                    f"num_key_value_heads is {groups} and num_attention_heads {heads}; with MLA both must be equal "
                    "(kv_lora_rank null makes it grouped-query attention)"
                )
            if self.partial_rotary_factor != 1:
                raise ValueError(
                    f"partial_rotary_factor is {self.partial_rotary_factor}; with MLA it must be 1, as "
                    "qk_rope_head_dim says what is turned"
                )
            return
        if heads % groups:
            raise ValueError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}")
        if not 0 < self.partial_rotary_factor <= 1:
            raise ValueError(f"partial_rotary_factor is {self.partial_rotary_factor}; it must lie in 0..1, 0 excluded")
        if self.rope_width < 2 or self.rope_width % 2:
            raise ValueError(
                f"head_dim {self.head_dim} with partial_rotary_factor {self.partial_rotary_factor} leaves "
                f"{self.rope_width} to turn; it must be even and at least 2, rope turns pairs"
            )

    def _check_scaling(self) -> None:
        scaling = self.rope_scaling
        if scaling is None or scaling.type != "dynamic":
            return
        original, trained = scaling.original_max_position_embeddings, self.max_position_embeddings
        if original not in (0, trained):
            raise ValueError(
                f"rope_scaling.original_max_position_embeddings is {original} and max_position_embeddings {trained}; "
                "with type 'dynamic' both are the trained length, and texts may grow to factor times it"
            )
        if self.rope_width == 2:
            raise ValueError("rope turns a width of 2; type 'dynamic' needs at least 4, its exponent is P/(P-2)")

    def _check_linear(self) -> None:
        linear = self.linear_attn_config
        if linear is not None:
            if self.kv_lora_rank is None:
                raise ValueError(
                    "linear_attn_config is given and kv_lora_rank is null; beside KDA stands MLA: "
                    "give kv_lora_rank, or make linear_attn_config null"
                )
            linear.check_layers(self.num_hidden_layers)
        if self.mla_use_nope and self.rope_scaling is not None:
            raise ValueError(
                f"rope_scaling is of type {self.rope_scaling.type!r} and mla_use_nope is true; nothing is rotated that "
                "could be stretched: make rope_scaling null, and max_position_embeddings what the texts need"
            )

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
        """Width of one query or key head: K + P with MLA, `head_dim` with GQA."""
        return self.head_dim if self.kv_lora_rank is None else self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def rope_width(self) -> int:
        """How many channels of a query or key head rope turns."""
        return int(self.head_dim * self.partial_rotary_factor) if self.kv_lora_rank is None else self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """qk_head_dim^-1/2; with MLA times YaRN's m(factor, mscale_all_dim)^2 where it is on.

        Published GQA models put all of YaRN's magnitude into cos and sin, so theirs stays as it is.
        """
        scale: float = self.qk_head_dim**-0.5
        latent = self.kv_lora_rank is not None
        return scale * self.rope_scaling.softmax_multiplier if self.rope_scaling and latent else scale

    @property
    def context_limit(self) -> int:
        """Tokens a text may have: max_position_embeddings, and `factor` times that with dynamic rope scaling."""
        scaling = self.rope_scaling
        return int(self.max_position_embeddings * (scaling.factor if scaling and scaling.type == "dynamic" else 1))

    def is_moe(self, layer: int) -> bool:
        """Whether layer `layer` (0-indexed) holds a mixture of experts.

        As in DeepSeek's published modeling_deepseek.py: from first_k_dense_replace on, those whose index, counted
        from the first layer of all, is a multiple of moe_layer_freq.
        """
        return bool(self.n_routed_experts) and layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0

    def is_kda(self, layer: int) -> bool:
        """Whether layer `layer` (0-indexed) is Kimi delta attention."""
        return self.linear_attn_config is not None and layer + 1 in self.linear_attn_config.kda_layers

    @property
    def num_kda_layers(self) -> int:
        """How many layers are Kimi delta attention; the others attend."""
        return len(self.linear_attn_config.kda_layers) if self.linear_attn_config else 0

    def replace(self, **changes: Any) -> ModelConfig:
        """Return a copy with some fields changed; an unknown field is a ValueError naming the nearest valid one."""
        valid = field_names()
        for name in changes:
            if name not in valid:
                raise unknown("model setting", name, valid)
        if isinstance(changes.get("rope_scaling"), Mapping):
            changes["rope_scaling"] = read_scaling(changes["rope_scaling"])
        if isinstance(changes.get("linear_attn_config"), Mapping):
            layers = changes.get("num_hidden_layers", self.num_hidden_layers)
            changes["linear_attn_config"] = read_linear_attention(changes["linear_attn_config"], layers)
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
        return _from_dict(read_json(path), str(path))

    def to_dict(self) -> dict[str, Any]:
        """Return the official config.json, in the form that transformers, vLLM and SGLang read.

        MLA is written as `deepseek_v3`, with KDA or without rope as `kimi_linear`, GQA with experts as `glm4_moe` and
        without as `llama`; see `official.py`.
        """
        return write_official(self.settings())

    def settings(self) -> dict[str, Any]:
        """Every field but `source`, as plain values: what a recipe holds."""
        out = {name: getattr(self, name) for name in field_names()}
        linear = self.linear_attn_config
        return out | {
            "rope_scaling": self.rope_scaling.to_dict() if self.rope_scaling else None,
            "linear_attn_config": linear.to_dict() if linear else None,
        }


def field_names() -> list[str]:
    """Names of the settings a file or a recipe may give."""
    return [f.name for f in fields(ModelConfig) if f.name != "source"]


def _from_dict(data: Mapping[str, Any], source: str) -> ModelConfig:
    where = f"{source}: " if source else ""
    try:
        return ModelConfig(**read_official(data, field_names()), source=source)
    except (TypeError, ValueError) as error:
        # A message quotes what the file holds, which may be of any length, and no text at all.
        raise ValueError(f"{where}{shown(error, 2000)}") from None
