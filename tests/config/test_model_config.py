"""ModelConfig reads every published file, and refuses what it cannot compute, naming both numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from moonlet.config import ModelConfig, RopeScaling, preset, preset_names

YARN: dict[str, Any] = {"type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}


def test_presets_are_the_named_ones() -> None:
    ours = {"course-gqa", "k2-mini", "k2-nano", "k2-small"}
    assert ours | {"deepseek-v3", "kimi-k2", "kimi-k2-thinking", "moonlight-16b-a3b"} <= set(preset_names())


def test_course_gqa_has_the_courses_sizes() -> None:
    c = preset("course-gqa")
    assert (c.hidden_size, c.num_hidden_layers, c.vocab_size) == (4096, 30, 100000)
    assert (c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.kv_lora_rank) == (32, 8, 128, None)
    assert (c.n_routed_experts, c.num_experts_per_tok, c.n_shared_experts) == (64, 6, 2)
    assert (c.dtype, c.tie_word_embeddings) == ("bfloat16", False)


@pytest.mark.parametrize(
    ("name", "vocab_size", "positions"), [("k2-mini", 8192, 2048), ("k2-small", 16384, 4096), ("k2-nano", 4096, 2048)]
)
def test_small_presets_are_kimi_in_all_but_size(name: str, vocab_size: int, positions: int) -> None:
    c, k2 = preset(name), preset("kimi-k2")
    assert (c.vocab_size, c.max_position_embeddings) == (vocab_size, positions)
    assert c.q_lora_rank
    assert c.kv_lora_rank
    for field in ("scoring_func", "norm_topk_prob", "first_k_dense_replace", "n_shared_experts", "rope_theta"):
        assert getattr(c, field) == getattr(k2, field), field


def test_kimi_k2_as_published() -> None:
    c = preset("kimi-k2")
    assert (c.num_hidden_layers, c.hidden_size, c.num_attention_heads) == (61, 7168, 64)
    assert (c.q_lora_rank, c.kv_lora_rank, c.qk_head_dim, c.v_head_dim) == (1536, 512, 192, 128)
    assert (c.n_routed_experts, c.num_experts_per_tok, c.n_shared_experts, c.n_group) == (384, 8, 1, 1)
    assert (c.routed_scaling_factor, c.rms_norm_eps, c.rope_theta) == (2.827, 1e-6, 50000.0)
    assert c.rope_scaling == RopeScaling(32.0, 4096, beta_fast=1.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0)
    assert (c.bos_token_id, c.eos_token_id, c.max_position_embeddings) == (163584, 163585, 131072)


def test_kimi_k2_thinking_differs_from_kimi_k2_only_where_published() -> None:
    base, thinking = preset("kimi-k2"), preset("kimi-k2-thinking")
    assert thinking.rope_scaling is not None
    assert thinking.rope_scaling.factor == 64.0
    changed = {"max_position_embeddings": 262144, "rms_norm_eps": 1e-5, "eos_token_id": 163586, "pad_token_id": 163839}
    assert base.replace(rope_scaling=thinking.rope_scaling, **changed) == thinking


def test_moonlight_as_published() -> None:
    c = preset("moonlight-16b-a3b")
    assert c.q_lora_rank is None
    assert c.rope_scaling is None
    assert (c.n_routed_experts, c.num_experts_per_tok, c.n_shared_experts) == (64, 6, 2)
    assert (c.routed_scaling_factor, c.rms_norm_eps) == (2.446, 1e-5)


def test_deepseek_v3_as_published() -> None:
    c = preset("deepseek-v3")
    assert (c.n_group, c.topk_group, c.first_k_dense_replace, c.num_attention_heads) == (8, 4, 3, 128)
    assert (c.rope_theta, c.routed_scaling_factor, c.vocab_size) == (10000.0, 2.5, 129280)
    assert [c.is_moe(i) for i in range(5)] == [False, False, False, True, True]


@pytest.mark.parametrize("name", sorted(set(preset_names()) - {"kimi-linear-48b-a3b", "linear-mini", "linear-nano"}))
def test_dict_round_trip_and_the_oracles_reader(name: str, tmp_path: Path) -> None:
    config = preset(name)
    assert ModelConfig.from_dict(config.to_dict()) == config
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    assert ModelConfig.from_file(tmp_path) == ModelConfig.from_file(tmp_path / "config.json") == config
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert type(theirs).__name__ == ("DeepseekV3Config" if config.kv_lora_rank else "Glm4MoeConfig")
    of_attention = "q_lora_rank" if config.kv_lora_rank else "num_key_value_heads"
    for field in (of_attention, "hidden_size", "n_routed_experts", "routed_scaling_factor", "rms_norm_eps", "n_group"):
        assert getattr(theirs, field) == getattr(config, field), field
    assert theirs.rope_parameters["rope_theta"] == config.rope_theta
    assert theirs.rope_parameters["rope_type"] == ("yarn" if config.rope_scaling else "default")


def test_source_is_neither_compared_nor_saved() -> None:
    assert ModelConfig(source="a") == ModelConfig(source="b")
    assert "source" not in ModelConfig(source="a").to_dict()


@pytest.mark.parametrize(
    ("spelled", "meant"),
    [
        ({"model_type": "kimi_k2", "torch_dtype": "float16"}, {"dtype": "float16"}),
        ({"dtype": "float16"}, {"dtype": "float16"}),
        ({"torch_dtype": None}, {}),
        ({"num_local_experts": 16}, {"n_routed_experts": 16}),
        ({"num_mtp_layers": 1}, {"num_nextn_predict_layers": 1}),
        ({"n_group": None, "topk_group": None}, {"n_group": 1, "topk_group": 1}),
        ({"n_shared_experts": None}, {"n_shared_experts": 0}),
        ({"n_routed_experts": None}, {"n_routed_experts": 0}),
        ({"eos_token_id": [7, 8]}, {"eos_token_id": 7}),
        ({"eos_token_id": []}, {"eos_token_id": None}),
        ({"num_attention_heads": 8}, {"num_attention_heads": 8, "num_key_value_heads": 8}),
        ({"rope_scaling": None}, {"rope_scaling": None}),
        ({"rope_scaling": {}}, {"rope_scaling": None}),
        ({"rope_scaling": YARN}, {"rope_scaling": RopeScaling(32.0, 4096)}),
        ({"rope_scaling": {"rope_type": "yarn", **YARN}}, {"rope_scaling": RopeScaling(32.0, 4096)}),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, {"rope_theta": 1e4, "rope_scaling": None}),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", **{k: YARN[k] for k in list(YARN)[1:]}}},
            {"rope_theta": 1e4, "rope_scaling": RopeScaling(32.0, 4096)},
        ),
        ({"ep_size": 1, "pretraining_tp": 1, "quantization_config": {"fmt": "e4m3"}, "auto_map": {}}, {}),
    ],
)
def test_spellings_of_each_family_mean_the_same(spelled: dict[str, Any], meant: dict[str, Any]) -> None:
    assert ModelConfig.from_dict(spelled) == ModelConfig(**meant)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hiden_size": 3}, "unknown config key 'hiden_size'; did you mean 'hidden_size'"),
        ({"n_routed_expert": 3}, "did you mean 'n_routed_experts'"),
        ({"rope_scaling": {**YARN, "fator": 2}}, "unknown rope_scaling key 'fator'; did you mean 'factor'"),
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; valid: 'deepseek_v3', 'kimi_k2', 'kimi_linear', 'glm4"),
        ({"num_attention_heads": 8, "num_key_value_heads": 4}, "num_key_value_heads is 4 and num_attention_heads 8"),
        ({"n_group": 7}, "n_routed_experts 384 is not a multiple of n_group 7"),
        ({"n_group": 2, "topk_group": 3}, "topk_group 3 exceeds n_group 2"),
        ({"num_experts_per_tok": 385}, "num_experts_per_tok is 385; it must lie in 1..384"),
        ({"n_group": 8, "num_experts_per_tok": 49}, "num_experts_per_tok is 49; it must lie in 1..48"),
        ({"n_group": 384, "topk_group": 8}, "n_group 384 leaves 1 expert a group"),
        ({"qk_rope_head_dim": 63}, "qk_rope_head_dim is 63; it must be even"),
        ({"scoring_func": "tanh"}, "scoring_func is 'tanh'; valid: 'sigmoid', 'softmax'"),
        ({"topk_method": "greedy"}, "topk_method is 'greedy'; valid: 'noaux_tc'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; valid: 'silu'"),
        ({"attention_bias": True}, "attention_bias is True; valid: False"),
        ({"rope_interleave": False}, "rope_interleave is False; valid: True"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false"),
        ({"hidden_size": 0}, "hidden_size is 0; it must be at least 1"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0; it must be a whole number"),
        ({"hidden_size": None}, "hidden_size is None; it must be a whole number"),
        ({"vocab_size": True}, "vocab_size is True; it must be a whole number"),
        ({"q_lora_rank": 0}, "q_lora_rank is 0; it must be at least 1, or null"),
        ({"q_lora_rank": 1.5}, "q_lora_rank is 1.5; it must be a whole number or null"),
        ({"first_k_dense_replace": -1}, "first_k_dense_replace is -1; it must be at least 0"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps is 0.0; it must be larger than 0"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'; it must be a finite number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; it must be a finite number"),
        ({"rope_theta": 1}, "rope_theta is 1; it must be larger than 1"),
        ({"initializer_range": -0.1}, "initializer_range is -0.1; it must be at least 0"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob is 'yes'; it must be true or false"),
        ({"dtype": "int4"}, "dtype is 'int4'; valid: 'float32', 'bfloat16'"),
        ({"rope_scaling": {**YARN, "type": "su"}}, "rope_scaling.type is 'su'; valid: 'yarn', 'linear', 'dynamic'"),
        (
            {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 1}},
            "rope_scaling.type is 'llama3'; valid: 'yarn'",
        ),
        ({"rope_scaling": {**YARN, "attention_factor": 0}}, "rope_scaling.attention_factor is 0; it must be larger"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 0.7}}, "mscale is 0.7 with type 'linear'; only"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling lacks factor"),
        (
            {"rope_scaling": {**YARN, "type": "dynamic"}},
            "original_max_position_embeddings is 4096 and max_position_embeddings 131072; with type 'dynamic'",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "qk_rope_head_dim": 2}, "rope turns a width of 2"),
        ({"kv_lora_rank": None, "num_key_value_heads": 5}, "num_attention_heads 64 is not a multiple of num_key_value"),
        (
            {"kv_lora_rank": None, "num_attention_heads": 60},
            "hidden_size 7168 is not a multiple of num_attention_heads 60",
        ),
        ({"kv_lora_rank": None, "head_dim": -1}, "head_dim is -1; it must be at least 1"),
        (
            {"kv_lora_rank": None, "head_dim": 7},
            "head_dim 7 with partial_rotary_factor 1.0 leaves 7 to turn; it must be",
        ),
        ({"kv_lora_rank": None, "partial_rotary_factor": 0.01}, "leaves 1 to turn; it must be even"),
        ({"kv_lora_rank": None, "partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5; it must lie in 0..1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; with MLA it must be 1"),
        ({"kv_lora_rank": 0}, "kv_lora_rank is 0; it must be at least 1"),
        ({"mla_use_nope": True}, "mla_use_nope is True; valid for model_type 'deepseek_v3': False, None"),
        ({"model_type": "glm4_moe", "use_qk_norm": True}, "use_qk_norm is True; valid: False"),
        ({"model_type": "glm4_moe", "attention_bias": True}, "attention_bias is True; valid: False"),
        ({"model_type": "glm4_moe", "kv_lora_rank": 8}, "kv_lora_rank is 8; valid for model_type 'glm4_moe': None"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias is True; valid: False"),
        ({"model_type": "llama", "n_routed_experts": 8}, "n_routed_experts is 8; valid for model_type 'llama': 0"),
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; valid for model_type"),
        ({"rope_scaling": {**YARN, "factor": 0.5}}, "rope_scaling.factor is 0.5; it must be at least 1"),
        ({"rope_scaling": {**YARN, "beta_fast": 0}}, "rope_scaling.beta_fast is 0; it must be larger than 0"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling lacks original_max_position_embeddings"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling gives factor and no type; valid: 'yarn'"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; it must be a table"),
        ({"vocab_size": 10**21}, "must be at most 1073741824"),
        ({"n_routed_experts": 10**6}, "n_routed_experts is 1000000; it must be at most 65536"),
        ({"hidden_size": 1 << 21}, "must be at most 1048576"),
    ],
)
def test_impossible_values_are_one_clear_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^here: .*{re.escape(message)}") as caught:
        ModelConfig.from_dict(given, source="here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        RopeScaling(4.0, 256, attention_factor=1.2),
        RopeScaling(4.0, type="linear"),
        RopeScaling(4.0, type="dynamic"),
        RopeScaling(4.0, 512, type="dynamic"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_routed_experts": 0},
        {"kv_lora_rank": None},
        {"kv_lora_rank": None, "n_routed_experts": 0},
        {"kv_lora_rank": None, "n_routed_experts": 0, "head_dim": 22, "partial_rotary_factor": 0.75},
        {"moe_layer_freq": 2, "scoring_func": "softmax", "tie_word_embeddings": True},
        {"kv_lora_rank": None, "moe_layer_freq": 3, "scoring_func": "softmax", "tie_word_embeddings": True},
    ],
    ids=str,
)
def test_every_option_survives_its_file_and_its_recipe(changes: dict[str, Any], scaling: RopeScaling | None) -> None:
    config = preset("k2-nano").replace(max_position_embeddings=512, rope_scaling=scaling, **changes)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert ModelConfig(**{**config.settings(), "rope_scaling": config.rope_scaling}) == config
    assert config.replace(**config.settings()) == config


def test_fields_of_what_is_not_there_say_nothing() -> None:
    gqa = preset("k2-nano").replace(kv_lora_rank=None, n_routed_experts=0)
    assert gqa == gqa.replace(q_lora_rank=3, v_head_dim=7, moe_intermediate_size=9, num_experts_per_tok=4)
    assert (gqa.q_lora_rank, gqa.qk_nope_head_dim, gqa.head_dim, gqa.qk_head_dim) == (None, 0, 32, 32)
    assert not any(gqa.is_moe(i) for i in range(gqa.num_hidden_layers))
    assert preset("k2-nano").replace(head_dim=99) == preset("k2-nano")
    with pytest.raises(ValueError, match="qk_nope_head_dim is 0; it must be at least 1"):
        gqa.replace(kv_lora_rank=8)


def test_dynamic_scaling_reaches_factor_times_the_trained_length() -> None:
    config = preset("k2-nano")
    assert config.context_limit == 2048
    assert config.replace(rope_scaling={"type": "dynamic", "factor": 2.5}).context_limit == 5120
    assert config.replace(rope_scaling={"type": "linear", "factor": 2.5}).context_limit == 2048


def test_gqa_leaves_the_softmax_scale_to_cos_and_sin() -> None:
    config = preset("k2-nano").replace(rope_scaling={**YARN, "mscale": 1.0, "mscale_all_dim": 1.0})
    assert config.softmax_scale == pytest.approx(48**-0.5 * 1.813260)
    assert config.replace(kv_lora_rank=None).softmax_scale == 32**-0.5


def test_layers_with_experts_follow_the_first_and_the_frequency() -> None:
    config = preset("k2-nano").replace(num_hidden_layers=8, first_k_dense_replace=3, moe_layer_freq=2)
    assert [i for i in range(8) if config.is_moe(i)] == [4, 6]


def test_replace_names_the_nearest_field() -> None:
    assert preset("k2-nano").replace(hidden_size=128).hidden_size == 128
    assert preset("k2-nano").replace(rope_scaling=YARN).rope_scaling == RopeScaling(32.0, 4096)
    with pytest.raises(ValueError, match="did you mean 'hidden_size'"):
        preset("k2-nano").replace(hiden_size=128)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown preset 'kimi-k3'; did you mean 'kimi-k2'"):
        preset("kimi-k3")


@pytest.mark.parametrize("content", ["{", "[1]", '"x"', "\xff\xfe"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        ModelConfig.from_file(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json at"):
        ModelConfig.from_file(tmp_path)


@pytest.mark.parametrize(
    ("mscale", "mscale_all_dim", "rotation", "softmax"),
    [
        (1.0, 1.0, 1.0, 1.813260),  # Kimi-K2: all of it in the softmax scale
        (1.0, 0.0, 1.346574, 1.0),  # YaRN's own form: all of it in cos and sin
        (0.707, 1.0, 1.245027 / 1.346574, 1.813260),
    ],
)
def test_yarn_magnitudes(mscale: float, mscale_all_dim: float, rotation: float, softmax: float) -> None:
    scaling = RopeScaling(32.0, 4096, mscale=mscale, mscale_all_dim=mscale_all_dim)
    assert scaling.rotation_multiplier == pytest.approx(rotation, rel=1e-5)
    assert scaling.softmax_multiplier == pytest.approx(softmax, rel=1e-5)


def test_a_factor_of_one_changes_no_magnitude() -> None:
    scaling = RopeScaling(1.0, 4096, mscale=1.0, mscale_all_dim=1.0)
    assert (scaling.rotation_multiplier, scaling.softmax_multiplier) == (1.0, 1.0)
