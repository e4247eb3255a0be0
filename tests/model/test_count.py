"""Exact sizes of the published models, to the last parameter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from moonlet.config import ModelConfig, preset, preset_names
from moonlet.model.count import cache_bytes_per_token, count, full_cache_bytes_per_token, part_of, shapes
from moonlet.model.init import build

PUBLISHED = {
    # name: total, active without embedding and head, with head, with head and embedding
    "kimi-k2": (1_026_408_232_448, 30_512_690_688, 31_687_095_808, 32_861_500_928),
    "kimi-k2-thinking": (1_026_408_232_448, 30_512_690_688, 31_687_095_808, 32_861_500_928),
    "deepseek-v3": (671_026_419_200, 35_698_939_392, 36_625_618_432, 37_552_297_472),
    "moonlight-16b-a3b": (15_960_110_208, 2_243_687_552, 2_579_231_872, 2_914_776_192),
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


@pytest.mark.parametrize(
    ("name", "latent", "full"), [("kimi-k2", 70_272, 2_498_560), ("moonlight-16b-a3b", 31_104, 276_480)]
)
def test_cache_bytes_a_token(name: str, latent: int, full: int) -> None:
    config = preset(name)
    assert cache_bytes_per_token(config) == latent
    assert full_cache_bytes_per_token(config) == full
    assert cache_bytes_per_token(config, 4) == 2 * latent


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_cache_takes_the_counted_bytes(tiny_config: Callable[..., ModelConfig], dtype: torch.dtype) -> None:
    model = build(tiny_config()).to(dtype)
    assert model.new_cache(3, 50).nbytes == 3 * 50 * cache_bytes_per_token(tiny_config(), dtype.itemsize)


@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None}, {"n_shared_experts": 0}, {"n_routed_experts": 0}])
def test_total_is_what_the_state_holds(tiny_config: Callable[..., ModelConfig], changes: dict[str, int | None]) -> None:
    config = tiny_config(**changes)
    c = count(config)
    assert c.total == sum(value.numel() for value in build(config).state_dict().values()) == sum(c.parts.values())
    assert all(c.parts.values()) == (not changes or "q_lora_rank" in changes)


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
        assert all(count(preset(name)).parts.values()), name


def test_an_unknown_tensor_is_never_left_out() -> None:
    with pytest.raises(ValueError, match=r"model\.layers\.0\.novel"):
        part_of("model.layers.0.novel")
