"""Exact sizes of the published models, to the last parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moonlet.config import LinearAttention, ModelConfig, preset, preset_names
from moonlet.model.count import (
    cache_bytes_per_token,
    conv_cache_bytes,
    count,
    full_cache_bytes_per_token,
    part_of,
    shapes,
    state_bytes,
)
from moonlet.model.init import build
from tests.conftest import GQA, LINEAR

ALL_KDA: dict[str, Any] = LINEAR | {"linear_attn_config": LinearAttention(6, 5, (1, 2, 3))}

PUBLISHED = {
    # name: total, active without embedding and head, with head, with head and embedding
    "kimi-k2": (1_026_408_232_448, 30_512_690_688, 31_687_095_808, 32_861_500_928),
    "kimi-k2-thinking": (1_026_408_232_448, 30_512_690_688, 31_687_095_808, 32_861_500_928),
    "deepseek-v3": (671_026_419_200, 35_698_939_392, 36_625_618_432, 37_552_297_472),
    "moonlight-16b-a3b": (15_960_110_208, 2_243_687_552, 2_579_231_872, 2_914_776_192),
    "kimi-linear-48b-a3b": (49_122_681_728, 2_729_485_184, 3_106_972_544, 3_484_459_904),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals_and_active_parameters(name: str) -> None:
    c = count(preset(name))
    assert (c.total, c.active, c.active_with_head, c.active_with_embedding) == PUBLISHED[name]


def test_moonlight_without_its_embeddings() -> None:
    c = count(preset("moonlight-16b-a3b"))
    assert c.total - c.embedding - c.head == 15_289_021_568


def test_pieces_of_kimi_k2() -> None:
    c, tensors = count(preset("kimi-k2")), shapes(preset("kimi-k2"))
    assert c.attention == 61 * 101_124_096
    assert c.routed_experts == 60 * 384 * 44_040_192
    assert c.routed_experts_active == 60 * 8 * 44_040_192
    assert c.shared_experts == 60 * 44_040_192
    assert c.router == 60 * (384 * 7168 + 384)
    assert c.dense == 3 * 7168 * 18432
    assert c.embedding == c.head == 163840 * 7168
    assert c.norms == (2 * 61 + 1) * 7168
    moe_layer = sum(shape.numel() for name, shape in tensors.items() if name.startswith("model.layers.1.mlp"))
    assert moe_layer == 16_958_226_816


def test_pieces_of_kimi_linear() -> None:
    config = preset("kimi-linear-48b-a3b")
    c, tensors = count(config), shapes(config)
    assert c.kda == 20 * 39_514_272
    assert c.attention == 7 * 29_114_880
    assert c.dense == 3 * 2304 * 9216
    assert c.router == 26 * (256 * 2304 + 256)
    for layer in (1, 3, 26):
        names = [name for name in tensors if name.startswith(f"model.layers.{layer}.")]
        assert sum(tensors[name].numel() for name in names if ".mlp." in name) == 1_819_607_296
        mixer = sum(tensors[name].numel() for name in names if ".self_attn." in name)
        assert mixer == (39_514_272 if layer == 1 else 29_114_880)


def test_the_cache_of_kimi_linear_is_a_quarter_a_token_and_a_constant() -> None:
    config = preset("kimi-linear-48b-a3b")
    attending = config.replace(linear_attn_config=None)
    assert cache_bytes_per_token(config) == 8_064
    assert cache_bytes_per_token(attending) == 31_104
    assert (state_bytes(config), conv_cache_bytes(config)) == (41_943_040, 1_474_560)
    assert (state_bytes(attending), conv_cache_bytes(attending)) == (0, 0)
    assert (state_bytes(preset("kimi-k2")), conv_cache_bytes(preset("kimi-k2"))) == (0, 0)
    # As many tokens of attention take what one layer's states do.
    assert state_bytes(config) / 20 / (576 * 2) == pytest.approx(1820, abs=1)


@pytest.mark.parametrize(
    ("name", "latent", "full"), [("kimi-k2", 70_272, 2_498_560), ("moonlight-16b-a3b", 31_104, 276_480)]
)
def test_cache_bytes_a_token(name: str, latent: int, full: int) -> None:
    config = preset(name)
    assert cache_bytes_per_token(config) == latent
    assert full_cache_bytes_per_token(config) == full
    assert cache_bytes_per_token(config, 4) == 2 * latent


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, GQA, LINEAR, ALL_KDA], ids=["mla", "gqa", "linear", "kda alone"])
def test_a_new_cache_takes_the_counted_bytes(
    tiny_config: Callable[..., ModelConfig], dtype: torch.dtype, changes: dict[str, Any]
) -> None:
    config = tiny_config(**changes)
    model = build(config).to(dtype)
    constant = state_bytes(config) + conv_cache_bytes(config, dtype.itemsize)
    assert model.new_cache(3, 50).nbytes == 3 * (50 * cache_bytes_per_token(config, dtype.itemsize) + constant)


def test_grouped_keys_take_less_cache_than_those_of_every_head() -> None:
    config = preset("course-gqa")
    assert cache_bytes_per_token(config) == 30 * 2 * 8 * 128 * 2
    assert full_cache_bytes_per_token(config) == 4 * cache_bytes_per_token(config)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        # Active: what a token passes through, without embedding and head.
        ("k2-nano", (8.5e6, 9e6), (3e6, 3.5e6)),
        ("k2-mini", (24e6, 26e6), (6.5e6, 7.5e6)),
        ("linear-nano", (8.8e6, 9.5e6), (3e6, 4e6)),
        ("linear-mini", (24e6, 26e6), (7e6, 8.5e6)),
        ("k2-small", (145e6, 155e6), (45e6, 52e6)),
        ("course-gqa", (35e9, 36e9), (5.3e9, 5.6e9)),
    ],
)
def test_presets_of_our_own_have_the_size_they_are_named_for(
    name: str, total: tuple[float, float], active: tuple[float, float]
) -> None:
    c = count(preset(name))
    assert total[0] < c.total < total[1]
    assert active[0] < c.active < active[1]


def test_the_attention_of_course_gqa_is_that_of_its_sizes() -> None:
    # Queries and output 4096 x 4096, keys and values 4096 x 1024.
    assert count(preset("course-gqa")).attention == 30 * (2 * 4096 * 4096 + 2 * 4096 * 1024)


def test_a_tied_head_is_counted_once(tiny_config: Callable[..., ModelConfig]) -> None:
    tied, apart = count(tiny_config(tie_word_embeddings=True)), count(tiny_config())
    assert tied.head == 0
    assert apart.total - tied.total == apart.head == tied.embedding == 61 * 40
    assert tied.active_with_head == apart.active_with_head  # it is multiplied with all the same
    assert tied.active_with_embedding == apart.active_with_embedding - apart.head


@pytest.mark.parametrize(
    "changes",
    [{}, {"q_lora_rank": None}, {"n_shared_experts": 0}, {"n_routed_experts": 0}, GQA | {"q_lora_rank": None}, LINEAR],
)
def test_total_is_what_the_state_holds(tiny_config: Callable[..., ModelConfig], changes: dict[str, Any]) -> None:
    config = tiny_config(**changes)
    c = count(config)
    assert c.total == sum(value.numel() for value in build(config).state_dict().values()) == sum(c.parts.values())
    empty = {"n_shared_experts": {"shared_experts"}, "n_routed_experts": {"router", "routed_experts", "shared_experts"}}
    without = next((parts for name, parts in empty.items() if name in changes), set())
    without |= set() if config.linear_attn_config else {"kda"}
    assert {part for part, number in c.parts.items() if not number} == without


def test_a_model_without_experts_is_active_as_a_whole(tiny_config: Callable[..., ModelConfig]) -> None:
    c = count(tiny_config(n_routed_experts=0))
    assert c.active_with_embedding == c.total


def test_active_equals_a_model_with_only_the_active_experts() -> None:
    config = preset("k2-nano")
    active = count(config.replace(n_routed_experts=config.num_experts_per_tok))
    router = count(config).router - active.router  # the router scores all experts
    assert count(config).active == active.total - active.embedding - active.head + router


def test_every_preset_counts_in_all_its_parts() -> None:
    for name in preset_names():
        empty = {part for part, number in count(preset(name)).parts.items() if not number}
        assert empty == (set() if preset(name).linear_attn_config else {"kda"}), name


def test_an_unknown_tensor_is_never_left_out() -> None:
    with pytest.raises(ValueError, match=r"model\.layers\.0\.novel"):
        part_of("model.layers.0.novel", preset("k2-nano"))
