"""Drawings of networks: they say what the configuration says, nothing overlaps, nothing sticks out."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import cache
from itertools import combinations
from typing import Any

import pytest

from moonlet.config import LinearAttention, ModelConfig, preset
from moonlet.plot.network import draw_network_svg, draw_network_text
from moonlet.plot.network.scene import Scene, Words
from moonlet.plot.network.stack import Kind, Run, layer_runs
from moonlet.plot.network.svg import draw_scene
from tests.conftest import LINEAR

PUBLISHED = {"num_hidden_layers": 27, "linear_attn_config": preset("kimi-linear-48b-a3b").linear_attn_config}
DENSE, MOE, KDA = Kind(False), Kind(True), Kind(True, True)

VARIANTS: dict[str, dict[str, Any]] = {
    "one query matrix": {"q_lora_rank": None},
    "dense": {"n_routed_experts": 0, "n_shared_experts": 0},
    "no shared expert": {"n_shared_experts": 0},
    "few experts": {"n_routed_experts": 4},
    "grouped queries": {"kv_lora_rank": None, "num_key_value_heads": 2, "head_dim": 10},
    "one key head": {"kv_lora_rank": None, "num_key_value_heads": 1, "head_dim": 16, "partial_rotary_factor": 0.5},
    "tied, dense, every head its own": {"kv_lora_rank": None, "n_routed_experts": 0, "tie_word_embeddings": True},
    "alternating": {"moe_layer_freq": 2, "num_hidden_layers": 9},
    "grouped routing": {"n_group": 4, "topk_group": 2},
    "all experts": {"first_k_dense_replace": 0},
    "kimi linear": LINEAR,
    "delta attention alone": LINEAR | {"linear_attn_config": LinearAttention(6, 5, (1, 2, 3)), "n_routed_experts": 0},
    "attention without position": {"mla_use_nope": True},
}
NAMES = ["kimi-k2", "deepseek-v3", "moonlight-16b-a3b", "k2-nano", "kimi-linear-48b-a3b", "linear-mini", *VARIANTS]


def config_of(name: str, tiny_config: Callable[..., ModelConfig]) -> ModelConfig:
    return tiny_config(**VARIANTS[name]) if name in VARIANTS else preset(name)


@cache
def width_of(text: str, bold: bool) -> float:
    """Of `text` at size 1."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return float(TextPath((0, 0), text, size=10, prop=font).get_extents().x1) / 10


def extent(words: Words) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a text in DejaVu Sans, wider than what browsers use."""
    width = width_of(words.text, words.bold) * words.size
    left = words.x - {"start": 0.0, "middle": width / 2, "end": width}[words.anchor]
    return left, words.y - 0.75 * words.size, left + width, words.y + 0.22 * words.size


def crossed(scene: Scene) -> list[str]:
    """Texts that a line runs through and no box hides."""
    found = []
    for words in scene.words:
        left, top, right, bottom = extent(words)
        if any(b.x <= left and right <= b.x + b.w and b.y <= top and bottom <= b.y + b.h and not b.style
               for b in scene.boxes):  # fmt: skip
            continue
        for line in scene.lines:
            for (x0, y0), (x1, y1) in zip(line.points, line.points[1:], strict=False):
                if min(x0, x1) < right and max(x0, x1) > left and min(y0, y1) < bottom and max(y0, y1) > top:
                    found.append(words.text)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overlaps_in_the_picture(name: str, tiny_config: Callable[..., ModelConfig]) -> None:
    svg, scene = draw_scene(config_of(name, tiny_config), name)
    width, height = map(float, re.findall(r'viewBox="0 0 (\S+) (\S+)"', svg)[0])
    places = [(words, extent(words)) for words in scene.words]
    for words, (left, top, right, bottom) in places:
        assert min(left, top, width - right, height - bottom) >= 0, words
        assert not words.room or right - left <= words.room, words
    for (one, a), (other, b) in combinations(places, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (one, other)
    solid = [box for box in scene.boxes if not box.style]
    for p, q in combinations(solid, 2):
        assert p.x + p.w <= q.x or q.x + q.w <= p.x or p.y + p.h <= q.y or q.y + q.h <= p.y, (p, q)
    assert crossed(scene) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_svg_is_self_contained_and_says_what_it_shows(name: str, tiny_config: Callable[..., ModelConfig]) -> None:
    svg = draw_network_svg(config_of(name, tiny_config), "a <model> & more")
    root = ET.fromstring(svg)
    tags = {element.tag.rsplit("}")[-1] for element in root.iter()}
    assert tags <= {"svg", "title", "desc", "style", "defs", "marker", "rect", "path", "text", "circle"}
    assert not re.search(r"href|url\((?!#)|@import|<script", svg)
    assert root.attrib["role"] == "img"
    title, description = root[0], root[1]
    assert {title.attrib["id"], description.attrib["id"]} == set(root.attrib["aria-labelledby"].split())
    assert title.text == "a <model> & more: the network"
    assert "residual stream" in (description.text or "")
    assert "prefers-color-scheme:dark" in svg


def test_the_picture_holds_the_widths_of_kimi_k2() -> None:
    _, scene = draw_scene(preset("kimi-k2"))
    said = {words.text for words in scene.words}
    assert {
        "embedding  163,840 → 7,168", "× 60", "layers 1–60", "latent 1,536", "64 × 128 = 8,192", "cached: 576 a token",
        "8 of 384 experts", "sigmoid(W x) + bias, 7,168 → 384", "weighted sum × 2.827", "RoPE θ 50,000, YaRN × 32",
        "7,168 → 2,048", "softmax(q kᵀ × 0.1309) v, causal",
    } <= said  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [40, 76, 100])
def test_text_fits_its_width(name: str, width: int, tiny_config: Callable[..., ModelConfig]) -> None:
    config = config_of(name, tiny_config)
    drawing = draw_network_text(config, width)
    assert max(map(len, drawing.splitlines())) <= width
    plain = draw_network_text(config, width, plain=True)
    assert plain.isascii()
    assert len(plain) == len(drawing)


def test_frames_of_the_text_close() -> None:
    lines = draw_network_text(preset("deepseek-v3")).splitlines()
    framed = [line for line in lines if line.startswith(("  ╭", "  │ ├", "  │ ⊕", "  ╰"))]
    assert len({len(line) for line in framed}) == 1
    assert {line[-1] for line in framed} == {"╮", "│", "╯"}


def test_text_says_what_is_tied_to_what() -> None:
    text = draw_network_text(preset("kimi-k2"))
    for phrase in (
        "embedding 163,840 → 7,168", "layers 1-60", "× 60", "q_a ─ 1,536 ─▶ RMSNorm ─▶ q_b", "[64 cached]",
        "[512 cached] ─▶ kv_b", "8 of 384 experts: 7,168 → 2,048 → 7,168", "head 7,168 → 163,840",
    ):  # fmt: skip
        assert phrase in text


def test_the_pictures_of_kimi_linear_say_what_it_keeps_and_rotates() -> None:
    config = preset("kimi-linear-48b-a3b")
    said = {words.text for words in draw_scene(config)[1].words}
    assert {
        "Kimi delta attention", "in 20 of 27 layers", "kept: 32 × 128 × 128", "conv 4", "rank 128", "× 6",
        "no position (NoPE)", "cached: 576 a token", "32 heads, no position", "32 heads, a state each",
    } <= said  # fmt: skip
    text = draw_network_text(config)
    assert not [line for line in said | {text} if "RoPE" in line]
    for phrase in ("layers 1-24", "KDA, 20 of 27 layers", "f_a ─ 128 ─▶ f_b", "[64 cached]", "32 × 128 = 4,096"):
        assert phrase in text
    assert "MLA: " not in draw_network_text(
        config.replace(linear_attn_config=LinearAttention(8, 2, tuple(range(1, 28))))
    )


@pytest.mark.parametrize(
    ("changes", "runs"),
    [
        ({"num_hidden_layers": 3}, [Run(0, (DENSE,), 1), Run(1, (MOE,), 2)]),
        ({"num_hidden_layers": 61}, [Run(0, (DENSE,), 1), Run(1, (MOE,), 60)]),
        ({"first_k_dense_replace": 0}, [Run(0, (MOE,), 3)]),
        ({"n_routed_experts": 0}, [Run(0, (DENSE,), 3)]),
        ({"moe_layer_freq": 2, "num_hidden_layers": 9}, [Run(0, (DENSE,), 1), Run(1, (DENSE, MOE), 4)]),
        ({"moe_layer_freq": 3, "num_hidden_layers": 13, "first_k_dense_replace": 0},
         [Run(0, (MOE,), 1), Run(1, (DENSE, DENSE, MOE), 4)]),
        (LINEAR, [Run(0, (Kind(False, True), KDA, MOE), 1)]),
        (PUBLISHED, [Run(0, (Kind(False, True),), 1), Run(1, (KDA, KDA, MOE, KDA), 6), Run(25, (KDA, MOE), 1)]),
    ],
)  # fmt: skip
def test_layers_are_said_in_the_fewest_patterns(
    tiny_config: Callable[..., ModelConfig], changes: dict[str, Any], runs: list[Run]
) -> None:
    found = layer_runs(tiny_config(**changes))
    assert found == runs


@pytest.mark.parametrize("freq", [1, 2, 3, 5])
@pytest.mark.parametrize("layers", [1, 7, 40])
def test_patterns_repeat_to_the_layers_themselves(
    tiny_config: Callable[..., ModelConfig], freq: int, layers: int
) -> None:
    config = tiny_config(moe_layer_freq=freq, num_hidden_layers=layers)
    kinds = [kind for run in layer_runs(config) for kind in run.pattern * run.times]
    assert kinds == [Kind(config.is_moe(i)) for i in range(layers)]
