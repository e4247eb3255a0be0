"""Kimi Linear's config.json: Moonshot's spelling is read and written, transformers' own is read, doubt is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, KimiLinearConfig

from moonlet.config import LinearAttention, ModelConfig, preset

PRESETS = ("kimi-linear-48b-a3b", "linear-mini", "linear-nano")
FOLDER = Path(__file__).parents[2] / "moonlet" / "config" / "presets"
TABLE: dict[str, Any] = {"head_dim": 16, "num_heads": 3, "kda_layers": [1, 2, 4], "full_attn_layers": [3, 5]}
KINDS = ["linear_attention" if i in TABLE["kda_layers"] else "full_attention" for i in range(1, 6)]
FILE: dict[str, Any] = {"model_type": "kimi_linear", "num_hidden_layers": 5, "linear_attn_config": TABLE}


def read(**changes: Any) -> ModelConfig:
    return ModelConfig.from_dict(FILE | changes)


def test_the_published_model() -> None:
    c = preset("kimi-linear-48b-a3b")
    assert (c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.intermediate_size) == (2304, 27, 32, 9216)
    assert (c.q_lora_rank, c.kv_lora_rank, c.qk_head_dim, c.v_head_dim, c.mla_use_nope) == (None, 512, 192, 128, True)
    assert (c.n_routed_experts, c.num_experts_per_tok, c.n_shared_experts, c.moe_intermediate_size) == (256, 8, 1, 1024)
    assert (c.routed_scaling_factor, c.rms_norm_eps, c.scoring_func, c.norm_topk_prob) == (2.446, 1e-5, "sigmoid", True)
    assert (c.bos_token_id, c.eos_token_id, c.pad_token_id, c.max_position_embeddings) == (
        163584,
        163586,
        163839,
        2**20,
    )
    assert c.softmax_scale == 192**-0.5
    linear = c.linear_attn_config
    assert linear is not None
    assert (linear.head_dim, linear.num_heads, linear.short_conv_kernel_size, linear.width) == (128, 32, 4, 4096)
    # One-indexed, three to one, and attention in the last layer, which breaks the pattern.
    assert [i for i in range(27) if not c.is_kda(i)] == [3, 7, 11, 15, 19, 23, 26]


def test_what_is_written_is_the_published_file() -> None:
    published = json.loads((FOLDER / "kimi-linear-48b-a3b.json").read_text(encoding="utf-8"))
    ours = preset("kimi-linear-48b-a3b").to_dict()
    assert {k: v for k, v in published.items() if k not in ("auto_map", "transformers_version")} == ours


@pytest.mark.parametrize(("name", "twin"), [("linear-nano", "k2-nano"), ("linear-mini", "k2-mini")])
def test_small_presets_are_their_twins_in_all_but_token_mixing(name: str, twin: str) -> None:
    mixing = {"linear_attn_config": None, "mla_use_nope": False, "rope_theta": 50000.0, "rms_norm_eps": 1e-6}
    config, other = preset(name), preset(twin)
    mixing |= {"q_lora_rank": other.q_lora_rank, "max_position_embeddings": other.max_position_embeddings}
    assert config.replace(**mixing) == other
    assert config.max_position_embeddings > 2**16 or name == "linear-nano"
    assert config.linear_attn_config is not None
    assert config.linear_attn_config.width == config.hidden_size


@pytest.mark.parametrize("name", PRESETS)
def test_a_file_we_write_is_read_back_and_by_the_oracle(name: str, tmp_path: Path) -> None:
    config = preset(name)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    assert ModelConfig.from_file(tmp_path) == config
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, KimiLinearConfig)
    linear = config.linear_attn_config
    assert linear is not None
    assert [kind == "linear_attention" for kind in theirs.layer_types] == [
        config.is_kda(i) for i in range(config.num_hidden_layers)
    ]
    assert [kind == "sparse" for kind in theirs.mlp_layer_types] == [
        config.is_moe(i) for i in range(config.num_hidden_layers)
    ]
    sizes = theirs.linear_head_dim, theirs.linear_num_heads, theirs.linear_conv_kernel_dim
    assert sizes == (linear.head_dim, linear.num_heads, linear.short_conv_kernel_size)
    same = ("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_attention_heads",
            "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_shared_experts",
            "num_experts_per_tok", "norm_topk_prob", "n_group", "topk_group", "routed_scaling_factor", "rms_norm_eps",
            "max_position_embeddings", "tie_word_embeddings", "pad_token_id", "bos_token_id")  # fmt: skip
    assert [field for field in same if getattr(theirs, field) != getattr(config, field)] == []
    assert theirs.num_local_experts == config.n_routed_experts


def test_keys_that_are_absent_have_the_values_of_the_oracles_class(tmp_path: Path) -> None:
    file = {
        "model_type": "kimi_linear",
        "linear_attn_config": preset("kimi-linear-48b-a3b").to_dict()["linear_attn_config"],
    }
    (tmp_path / "config.json").write_text(json.dumps(file), encoding="utf-8")
    ours, published = ModelConfig.from_file(tmp_path), preset("kimi-linear-48b-a3b")
    assert ours.replace(bos_token_id=163584, eos_token_id=163586, pad_token_id=163839) == published
    assert AutoConfig.from_pretrained(tmp_path).num_local_experts == published.n_routed_experts


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"linear_attn_config": {**TABLE, "kda_layers": [], "full_attn_layers": [1, 2, 3, 4, 5]}},
        {"linear_attn_config": {**TABLE, "kda_layers": [1, 2, 3, 4, 5], "full_attn_layers": []}},
        {"linear_attn_config": {"kda_layers": []}},
        {"linear_attn_config": None},
        {"mla_use_nope": False},
        {"mla_use_nope": False, "linear_attn_config": None},
        {"mla_use_nope": False, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e4},
        {"num_experts": 0},
        {"q_lora_rank": 64, "tie_word_embeddings": True, "num_shared_experts": 0, "num_expert_group": 4},
        {"moe_router_activation_func": "softmax", "moe_renormalize": False, "moe_layer_freq": 2, "aux_loss_alpha": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_every_option_survives_its_file_and_its_recipe(changes: dict[str, Any]) -> None:
    config = read(**changes)
    written = config.to_dict()
    assert written["model_type"] == "kimi_linear"
    table = written["linear_attn_config"]
    assert sorted(table["kda_layers"] + table["full_attn_layers"]) == [1, 2, 3, 4, 5]  # complete, as vLLM wants them
    assert ModelConfig.from_dict(json.loads(json.dumps(written))) == config
    assert config.replace(**config.settings()) == config


@pytest.mark.parametrize(
    ("spelled", "meant"),
    [
        ({"num_experts": 16}, {"n_routed_experts": 16}),
        ({"num_experts_per_token": 3}, {"num_experts_per_tok": 3}),
        ({"num_shared_experts": None}, {"n_shared_experts": 0}),
        ({"moe_renormalize": False}, {"norm_topk_prob": False}),
        ({"moe_router_activation_func": "softmax"}, {"scoring_func": "softmax"}),
        ({"num_expert_group": 4, "topk_group": 2}, {"n_group": 4, "topk_group": 2}),
        ({"model_max_length": 4096}, {"max_position_embeddings": 4096}),
        ({"num_local_experts": 16, "n_group": 2, "norm_topk_prob": False},
         {"n_routed_experts": 16, "n_group": 2, "norm_topk_prob": False}),
        ({"head_dim": 72, "rope_theta": 7.0, "rope_scaling": None, "use_grouped_topk": True}, {}),
        ({"mla_use_nope": None}, {}),
        ({"linear_attn_config": {**TABLE, "kda_layers": [4, 2, 1]}}, {}),
        ({"linear_attn_config": {k: v for k, v in TABLE.items() if k != "full_attn_layers"}}, {}),
        # A layer in neither list is attention.
        ({"linear_attn_config": {**TABLE, "full_attn_layers": [3]}}, {}),
    ],
    ids=str,
)  # fmt: skip
def test_spellings_mean_what_the_family_says(spelled: dict[str, Any], meant: dict[str, Any]) -> None:
    assert read(**spelled) == read().replace(**meant)


def test_the_table_alone_makes_a_file_one_of_this_family() -> None:
    file = {key: value for key, value in FILE.items() if key != "model_type"}
    assert ModelConfig.from_dict(file) == read()


@pytest.mark.parametrize(
    ("changes", "meant"),
    [
        ({}, (1, 2, 4)),
        ({"layer_types": ["full_attention"] * 5}, ()),
        ({"linear_attn_config": TABLE}, (1, 2, 4)),
        ({"linear_attn_config": None}, (1, 2, 4)),
    ],
    ids=["sizes", "full", "both", "null"],
)
def test_what_the_oracle_saves_is_read(changes: dict[str, Any], meant: tuple[int, ...], tmp_path: Path) -> None:
    table = {"linear_head_dim": 16, "linear_num_heads": 3, "layer_types": KINDS} | changes
    given = {"num_hidden_layers": 5, "mlp_layer_types": ["dense"] * 2 + ["sparse"] * 3, "pad_token_id": None}
    KimiLinearConfig(
        **{k: v for k, v in (given | table).items() if v is not None or k == "pad_token_id"}
    ).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config = ModelConfig.from_dict(saved | {k: v for k, v in table.items() if v is None})
    assert config.linear_attn_config == LinearAttention(16, 3, meant)
    assert (config.first_k_dense_replace, config.mla_use_nope, config.n_routed_experts) == (2, True, 256)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linear_attn_config": {**TABLE, "kda_layers": [0, 1]}}, "kda_layers names layer 0; layers are counted from"),
        ({"linear_attn_config": {**TABLE, "full_attn_layers": [0]}}, "full_attn_layers names layer 0; layers are"),
        ({"linear_attn_config": {**TABLE, "kda_layers": [1, 6]}}, "names layer 6 and num_hidden_layers is 5"),
        ({"linear_attn_config": {**TABLE, "full_attn_layers": [6]}}, "names layer 6 and num_hidden_layers is 5"),
        ({"linear_attn_config": {**TABLE, "kda_layers": [1, 3]}}, "layer 3 is in kda_layers and in full_attn_layers"),
        ({"linear_attn_config": {**TABLE, "kda_layers": [1, 1]}}, "kda_layers names a layer twice"),
        ({"linear_attn_config": {**TABLE, "kda_layers": ["1"]}}, "kda_layers is ['1']; it must be a list of layers"),
        ({"linear_attn_config": {**TABLE, "kda_layers": None}}, "kda_layers is None; it must be a list of layers"),
        ({"linear_attn_config": {**TABLE, "head_dim": 0}}, "linear_attn_config.head_dim is 0; it must be at least 1"),
        ({"linear_attn_config": {**TABLE, "num_heads": 2.5}}, "num_heads is 2.5; it must be a whole number"),
        ({"linear_attn_config": {**TABLE, "short_conv_kernel_size": 0}}, "short_conv_kernel_size is 0; it must be at"),
        ({"linear_attn_config": {**TABLE, "gate_lower_bound": -5.0}}, "linear_attn_config key 'gate_lower_bound'"),
        ({"linear_attn_config": {"kda_layers": [1]}}, "linear_attn_config lacks head_dim and num_heads"),
        ({"linear_attn_config": [1]}, "linear_attn_config is [1]; it must be a table, or null"),
        ({"kv_lora_rank": None}, "linear_attn_config is given and kv_lora_rank is null"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "of type 'linear' and mla_use_nope is true"),
        ({"mla_use_nope": "yes"}, "mla_use_nope is 'yes'; it must be true or false"),
        ({"use_grouped_topk": False}, "use_grouped_topk is False; valid: True"),
        ({"mla_use_output_gate": True}, "unknown config key 'mla_use_output_gate'"),
        ({"num_exprts": 3}, "did you mean 'num_experts'"),
        ({"num_hidden_layers": "5"}, "num_hidden_layers is '5'; it must be a whole number"),
        ({"layer_types": ["full_attention"] * 5}, "layer_types and linear_attn_config.kda_layers disagree on layer 1"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types has 4 entries and num_hidden_layers is 5"),
        ({"layer_types": ["attention"] * 5}, "it must be a list of 'full_attention' and 'linear_attention'"),
        ({"layer_types": KINDS, "linear_head_dim": 8}, "linear_attn_config.head_dim is 16, and beside it 8 is given"),
        ({"mlp_layer_types": ["dense", "sparse", "dense", "sparse", "sparse"]}, "has a dense layer behind layer 2"),
        ({"mlp_layer_types": ["dense"] + ["sparse"] * 4, "first_k_dense_replace": 2}, "first_k_dense_replace is 2 and"),
    ],
)  # fmt: skip
def test_impossible_files_are_one_clear_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^here: .*{re.escape(message)}") as caught:
        ModelConfig.from_dict(FILE | changes, source="here")
    assert "\n" not in str(caught.value)


def test_a_file_that_does_not_say_what_its_layers_are_is_refused() -> None:
    # Moonshot's class would make all of them attention, transformers' one in four and another one than published.
    with pytest.raises(ValueError, match="linear_attn_config is missing"):
        ModelConfig.from_dict({"model_type": "kimi_linear"})


def test_equal_models_have_equal_configurations() -> None:
    config = read()
    assert config == config.replace(rope_theta=3.0, head_dim=9)  # nothing is rotated
    bare = read(linear_attn_config=None)
    assert bare == config.replace(linear_attn_config={**TABLE, "kda_layers": [], "full_attn_layers": []})
    assert bare == bare.replace(linear_attn_config=LinearAttention(8, 2, (), 7))
    plain = config.replace(linear_attn_config=None, mla_use_nope=False)
    assert (plain.to_dict()["model_type"], plain.linear_attn_config) == ("deepseek_v3", None)
    assert plain.replace(kv_lora_rank=None, mla_use_nope=True).mla_use_nope is False
