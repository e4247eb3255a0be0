"""Recipes: TOML in, a checked dataclass out; overrides change single values; a misspelled key names the nearest."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.config import LinearAttention, Recipe, RopeScaling, load_recipe, preset, recipe_from_dict, toml
from moonlet.config.recipe import override_model
from moonlet.config.sections import TrainSettings

STEPS = {"train": {"steps": 10}}


def read(*overrides: str, **tables: Any) -> Recipe:
    return recipe_from_dict(STEPS | tables, overrides)


def test_an_almost_empty_recipe_is_complete() -> None:
    recipe = read()
    assert recipe.train == TrainSettings(steps=10)
    assert recipe.model == preset("k2-nano")


def test_a_preset_and_fields_of_the_model() -> None:
    recipe = read(model={"preset": "moonlight-16b-a3b", "num_hidden_layers": 2, "rope_theta": 10000})
    assert recipe.model == preset("moonlight-16b-a3b").replace(num_hidden_layers=2, rope_theta=10000.0)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.steps=50", ("train", "steps"), 50),
        ("train.minutes=3", ("train", "minutes"), 3.0),
        ("optim.lr=1e-3", ("optim", "lr"), 1e-3),
        ("optim.betas=[0.8, 0.9]", ("optim", "betas"), (0.8, 0.9)),
        ("data.seed = 5", ("data", "seed"), 5),
        ("name=a b", ("name",), "a b"),
        ('name="50"', ("name",), "50"),
        ("prompts=['Hello, you']", ("prompts",), ("Hello, you",)),
        ("data.cache=a=b", ("data", "cache"), "a=b"),
        ("data.path=/tmp/my file.txt", ("data", "path"), "/tmp/my file.txt"),
        ("model.hidden_size=64", ("model", "hidden_size"), 64),
        ("model.q_lora_rank=null", ("model", "q_lora_rank"), None),
        ("model.norm_topk_prob=false", ("model", "norm_topk_prob"), False),
    ],
)
def test_an_override_changes_one_value(override: str, path: tuple[str, ...], value: object) -> None:
    found: object = read(override)
    for name in path:
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_overrides_win_over_the_file_and_later_ones_over_earlier() -> None:
    assert read("train.steps=2", "train.steps=3").train.steps == 3


def test_a_single_value_of_rope_scaling_keeps_the_others() -> None:
    model = read("model.preset=kimi-k2", "model.rope_scaling.factor=64").model
    before = preset("kimi-k2").rope_scaling
    assert before is not None
    assert model.rope_scaling == dataclasses.replace(before, factor=64)
    assert read("model.preset=kimi-k2", "model.rope_scaling=null").model.rope_scaling is None


def test_another_type_of_rope_scaling_starts_anew() -> None:
    model = read("model.preset=kimi-k2", "model.rope_scaling.type=linear", "model.rope_scaling.factor=8").model
    assert model.rope_scaling == RopeScaling(8, type="linear")


def test_a_single_value_of_linear_attention_keeps_the_others() -> None:
    def table(*overrides: str) -> LinearAttention | None:
        return read("model.preset=linear-nano", *overrides).model.linear_attn_config

    prefix = "model.linear_attn_config"
    assert table() == LinearAttention(64, 4, (1, 2, 3), 4)
    assert table(f"{prefix}.kda_layers=[4, 1]") == LinearAttention(64, 4, (1, 4), 4)
    assert table(f"{prefix}.num_heads=2", f"{prefix}.short_conv_kernel_size=3") == LinearAttention(64, 2, (1, 2, 3), 3)
    assert table(f"{prefix}.full_attn_layers=[2]") == LinearAttention(64, 4, (1, 3, 4), 4)
    assert table("model.num_hidden_layers=6", f"{prefix}.full_attn_layers=[6]") == LinearAttention(
        64, 4, (1, 2, 3, 4, 5)
    )
    assert table("model.num_hidden_layers=2", f"{prefix}.kda_layers=[1]") == LinearAttention(64, 4, (1,), 4)
    assert table(f"{prefix}=null", "model.mla_use_nope=false") is None


def test_linear_attention_may_be_made_of_single_values_or_of_a_table() -> None:
    sizes = {"kda_layers": [1, 3], "head_dim": 16, "num_heads": 3}
    by_table = read(model={"preset": "k2-nano", "linear_attn_config": sizes}).model
    by_value = read(*(f"model.linear_attn_config.{name}={value}" for name, value in sizes.items())).model
    assert by_table == by_value == preset("k2-nano").replace(linear_attn_config=LinearAttention(16, 3, (1, 3)))


def test_fewer_layers_than_the_pattern_names_say_what_to_give() -> None:
    with pytest.raises(ValueError, match=r"names layer 3 and num_hidden_layers is 2.*kda_layers=\[1, 2\]"):
        read("model.preset=linear-nano", "model.num_hidden_layers=2")


def test_a_recipe_with_grouped_queries_survives_its_file() -> None:
    recipe = read("model.kv_lora_rank=null", "model.num_key_value_heads=2", "model.tie_word_embeddings=true")
    assert (recipe.model.kv_lora_rank, recipe.model.head_dim) == (None, 32)
    assert recipe_from_dict(tomllib.loads(toml.dumps(recipe.to_dict()))) == recipe


def test_rope_scaling_may_be_made_of_single_values() -> None:
    factor, length = "model.rope_scaling.factor=4", "model.rope_scaling.original_max_position_embeddings=512"
    scaling = read(factor, length).model.rope_scaling
    assert scaling is not None
    assert (scaling.type, scaling.factor, scaling.original_max_position_embeddings) == ("yarn", 4, 512)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=3", "unknown recipe key 'train.step'; did you mean 'train.steps'?"),
        ("steps=3", "did you mean 'train.steps'?"),
        ("model.hiden_size=3", "did you mean 'model.hidden_size'?"),
        ("optimizer.lr=3", "did you mean 'optim.lr'?"),
        ("model.preset=kimi-k3", "unknown preset 'kimi-k3'; did you mean 'kimi-k2'?"),
        ("train.steps", "override 'train.steps' is not of the form a.b=c"),
        ("=3", "override '=3' is not of the form a.b=c"),
        ("train.steps=many", "train.steps is 'many'; it must be of type int"),
        ("train.steps=1.5", "train.steps is 1.5; it must be of type int"),
        ("train.steps=true", "train.steps is True; it must be of type int"),
        ("optim.lr=fast", "optim.lr is 'fast'; it must be of type float"),
        ("optim.betas=[0.9]", "optim.betas has 1 entries; it must have 2"),
        ("optim.betas=0.9", "optim.betas is 0.9; it must be a list"),
        ("name=3", "name is 3; it must be of type str"),
        ("model.hidden_size=64.5", "model.hidden_size is 64.5; it must be of type int"),
        ("model.hidden_size=0", "hidden_size is 0; it must be at least 1"),
        ("model.rope_scaling=3", "model.rope_scaling is 3; it must be a table, or null"),
        ("model.rope_scaling.fator=3", "unknown rope_scaling key 'fator'; did you mean 'factor'?"),
        ("model.linear_attn_config=3", "model.linear_attn_config is 3; it must be a table, or null"),
        (
            "model.linear_attn_config.kda_layer=[1]",
            "unknown linear_attn_config key 'kda_layer'; did you mean 'kda_layers'?",
        ),
        ("model.linear_attn_confg.kda_layers=[1]", "did you mean 'model.linear_attn_config'?"),
        ("model.linear_attn_config.kda_layers=[1]", "linear_attn_config lacks head_dim and num_heads"),
        ("model.linear_attn_config.full_attn_layers=4", "full_attn_layers is 4; it must be a list of layers"),
        ("tokenizer.kind=words", "tokenizer.kind is 'words'; valid:"),
        ("optim.lr=0", "optim.lr is 0.0; it must be above 0 and finite"),
        ("optim.lr=nan", "optim.lr is nan; it must be above 0 and finite"),
        ("optim.weight_decay=-0.1", "optim.weight_decay is -0.1; it must be at least 0 and finite"),
        ("optim.momentum=-0.5", "optim.momentum is -0.5; it must lie in 0..1, 1 excluded"),
        ("optim.momentum=1", "optim.momentum is 1.0; it must lie in 0..1, 1 excluded"),
        ("optim.ns_steps=0", "optim.ns_steps is 0; it must be at least 1"),
        ("optim.betas=[0.9, 1.0]", "optim.betas is [0.9, 1.0]; it must lie in 0..1, 1 excluded"),
        ("optim.eps=0", "optim.eps is 0.0; it must be above 0"),
        ("optim.schedule=step", "optim.schedule is 'step'; valid:"),
        ("train.dtype=int8", "train.dtype is 'int8'; valid:"),
        ("data.kind=text", 'data.kind is "text" and data.path is empty; give data.path=FILE'),
        ("train.steps=0", "train.steps and train.minutes are both 0"),
        ("train.micro_batch_size=5", "train.batch_size 32 is not a multiple of train.micro_batch_size 5"),
        ("train.seq_len=5000", "train.seq_len is 5000; it must lie in 1..2048"),
        ("data.valid_fraction=1.0", "data.valid_fraction is 1.0; it must lie between 0 and 1"),
        ("train.keep_last=0", "train.keep_last is 0; it must be at least 1"),
    ],
)
def test_a_wrong_override_is_one_clear_line(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read(override)
    assert "\n" not in str(caught.value)


def test_an_override_inside_something_that_is_no_table() -> None:
    with pytest.raises(ValueError, match="rope_scaling is 'null', not a table"):
        read("model.rope_scaling=null", "model.rope_scaling.factor=3")
    with pytest.raises(ValueError, match="train is 3"):
        recipe_from_dict({"train": 3}, ["train.steps=3"])
    with pytest.raises(ValueError, match=r"train is 3; it must be a table, \[train\]"):
        recipe_from_dict({"train": 3})


@pytest.mark.parametrize("name", ["k2-nano", "kimi-k2", "moonlight-16b-a3b", "linear-nano", "kimi-linear-48b-a3b"])
def test_a_recipe_survives_toml(name: str, tmp_path: Path) -> None:
    recipe = read("optim.betas=[0.8, 0.99]", model={"preset": name}, prompts=['say "hi"\n', "ünï \\ \t"])
    path = tmp_path / "recipe.toml"
    path.write_text(toml.dumps(recipe.to_dict()), encoding="utf-8")
    assert load_recipe(path) == recipe


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_toml(text: str) -> None:
    assert tomllib.loads(toml.dumps({"a": text, "t": {"b": [text]}})) == {"a": text, "t": {"b": [text]}}


def test_a_recipe_file_is_named_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    with pytest.raises(FileNotFoundError, match=r"no recipe at .*r\.toml"):
        load_recipe(path)
    path.write_text("a = ", encoding="utf-8")
    with pytest.raises(ValueError, match=r"r\.toml is not valid TOML"):
        load_recipe(path)
    path.write_text("[train]\nstep = 3", encoding="utf-8")
    with pytest.raises(ValueError, match=r"r\.toml: unknown recipe key 'train\.step'"):
        load_recipe(path)


def test_overriding_a_model_alone() -> None:
    config = preset("kimi-k2")
    assert override_model(config, []) == config
    assert override_model(config, ["hidden_size=64", "model.vocab_size=100"]) == config.replace(
        hidden_size=64, vocab_size=100
    )
    with pytest.raises(ValueError, match="override '=3' is not of the form field=value"):
        override_model(config, ["=3"])
    with pytest.raises(ValueError, match=r"unknown recipe key 'model\.preset'"):
        override_model(config, ["preset=k2-nano"])
