"""Kimi Linear's config.json: other spellings of known settings, and two ways to say what each layer is.

Moonshot publishes the table `linear_attn_config` (`linear_attention.py`) and counts dense layers by
`first_k_dense_replace`; transformers 5 saves a name for every layer instead, `layer_types` and `mlp_layer_types`. Both
are read, the first one is written, as every engine reads it.

`mla_use_nope` true leaves queries and keys of the full-attention layers as they are; where a file lacks the key that is
meant, as no published code does anything else. False is computed here as it says, with rope at `rope_theta`; Moonshot's
code and vLLM refuse such a file, and transformers passes over the key and rotates nothing. Likewise a number for
`q_lora_rank` is for this package and transformers, and `tie_word_embeddings` true is known to transformers and not
obeyed by it: such a model's head is written as a tensor of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moonlet.config.linear_attention import LinearAttention, other_layers, read_linear_attention

# Moonshot's spelling of a field.
SPELLING = {
    "num_experts": "n_routed_experts",
    "num_experts_per_token": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts",
    "moe_renormalize": "norm_topk_prob",
    "moe_router_activation_func": "scoring_func",
    "num_expert_group": "n_group",
    "model_max_length": "max_position_embeddings",
}

# What a key means that a file leaves out: the defaults of transformers' class, which are the published model's.
ABSENT: dict[str, Any] = {
    "vocab_size": 163840, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 27,
    "num_attention_heads": 32, "q_lora_rank": None, "mla_use_nope": True, "moe_intermediate_size": 1024,
    "n_routed_experts": 256, "routed_scaling_factor": 2.446, "max_position_embeddings": 1048576,
    "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
}  # fmt: skip

_KINDS = {"layer_types": ("full_attention", "linear_attention"), "mlp_layer_types": ("dense", "sparse")}
# transformers' names for what the table holds.
_SIZES = {
    "linear_head_dim": "head_dim",
    "linear_num_heads": "num_heads",
    "linear_conv_kernel_dim": "short_conv_kernel_size",
}


def published_form(data: Mapping[str, Any]) -> dict[str, Any]:
    """A file's keys with what transformers saves in place of Moonshot's table turned into it, as `LinearAttention`.

    Raises:
        ValueError: neither way says what the layers are, both do and disagree, or a pattern that cannot be held.
    """
    # Moonshot's class knows null for it as for an absent one.
    out = {key: value for key, value in data.items() if key != "mla_use_nope" or value is not None}
    layers = out.get("num_hidden_layers", ABSENT["num_hidden_layers"])
    if not isinstance(layers, int) or isinstance(layers, bool):
        raise ValueError(f"num_hidden_layers is {layers!r}; it must be a whole number")
    if out.get("layer_types") is None and "linear_attn_config" not in out:
        raise ValueError("linear_attn_config is missing; a file of model_type 'kimi_linear' says which layers are KDA")
    out["linear_attn_config"] = _read_table(out, layers)
    kinds = _read_kinds(out, "mlp_layer_types", layers)
    if kinds is not None:
        dense = [*kinds, "sparse"].index("sparse")
        if "dense" in kinds[dense:]:
            raise ValueError(
                f"mlp_layer_types has a dense layer behind layer {dense + 1}, which is sparse; not known here"
            )
        given = out.setdefault("first_k_dense_replace", dense)
        if isinstance(given, int) and min(given, layers) != dense:
            raise ValueError(f"first_k_dense_replace is {given} and mlp_layer_types begins with {dense} dense layers")
    return out


def published_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings`, a value for every field of ModelConfig but `source`, under Moonshot's keys, both lists complete."""
    spelling = {field: key for key, field in SPELLING.items()}
    out = {spelling.get(field, field): value for field, value in settings.items()}
    table = out["linear_attn_config"]
    full = other_layers(table["kda_layers"], out["num_hidden_layers"])
    out["linear_attn_config"] = table | {"full_attn_layers": full}
    # Nobody computes with it; Moonshot's file holds this number all the same.
    out["head_dim"] = out["hidden_size"] // out["num_attention_heads"]
    return out


def _read_table(out: dict[str, Any], layers: int) -> LinearAttention:
    """The table, from itself or from `layer_types`, which are taken out of `out` with the sizes beside them."""
    sizes = {name: out.pop(key) for key, name in _SIZES.items() if key in out}
    kinds = _read_kinds(out, "layer_types", layers)
    given = out.get("linear_attn_config")
    if kinds is None:
        return LinearAttention() if given is None else read_linear_attention(given, layers)
    named = [i + 1 for i, kind in enumerate(kinds) if kind == "linear_attention"]
    if given is None:
        return LinearAttention(kda_layers=tuple(named), **sizes)
    table = read_linear_attention(given, layers)
    differing = sorted(set(named) ^ set(table.kda_layers))
    if differing:
        raise ValueError(f"layer_types and linear_attn_config.kda_layers disagree on layer {differing[0]}")
    for name, value in sizes.items() if named else ():
        if value != getattr(table, name):
            raise ValueError(f"linear_attn_config.{name} is {getattr(table, name)}, and beside it {value} is given")
    return table


def _read_kinds(out: dict[str, Any], name: str, layers: int) -> list[str] | None:
    """One of transformers' lists, taken out of `out`."""
    kinds = out.pop(name, None)
    if kinds is None:
        return None
    if not isinstance(kinds, list) or any(kind not in _KINDS[name] for kind in kinds):
        raise ValueError(f"{name} is {kinds!r}; it must be a list of {' and '.join(map(repr, _KINDS[name]))}")
    if len(kinds) != layers:
        raise ValueError(f"{name} has {len(kinds)} entries and num_hidden_layers is {layers}; both must be equal")
    return kinds
