"""The network on one slide: the model, its token mixing, its experts, and where parameters and operations go."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from moonlet.config import ModelConfig
from moonlet.model.describe import describe
from moonlet.plot.network import attention_panel, channel_panel, delta_panel, model_panel, words
from moonlet.plot.network.scene import Box, Scene
from moonlet.plot.numbers import SI, human

_MARGIN, _GAP, _HEADER, _BARS = 24, 20, 76, 176
WIDTH = 2 * _MARGIN + 2 * _GAP + model_panel.WIDTH + attention_panel.WIDTH + channel_panel.WIDTH
_NAMES = {
    "embedding": "embedding",
    "attention": "attention",
    "scores": "attention scores",
    "kda": "KDA",
    "delta": "KDA's states",
    "dense": "dense",
    "router": "routers",
    "routed_experts": "routed experts",
    "shared_experts": "shared experts",
    "norms": "norms",
    "head": "head",
}


def draw_network_svg(config: ModelConfig, name: str = "", context: int | None = None) -> str:
    """Draw the network of `config` as an SVG document for light and dark pages.

    Args:
        name: what the model is called; it stands in the title.
        context: keys each token attends to where operations are counted; None: as `describe` chooses.

    Raises:
        ValueError: a context the model has no positions for.
    """
    return draw_scene(config, name, context)[0]


def draw_scene(config: ModelConfig, name: str = "", context: int | None = None) -> tuple[str, Scene]:
    """`draw_network_svg`, with what was drawn."""
    scene = Scene()
    tall = model_panel.model_height(config) + 20
    mixers = _mixers(config)
    mixing = sum(height for _, height in mixers) + _GAP * (len(mixers) - 1)
    body = max(tall, mixing, channel_panel.HEIGHT)
    height = _HEADER + body + _BARS
    described = describe(config, context)
    counts, flops = described.counts, described.flops
    sizes = f"{human(counts.total)} parameters, {human(counts.active_with_embedding)} active a token"
    title = name or "network"
    scene.say(_MARGIN, 40, title, 24, "start", bold=True)
    scene.say(_MARGIN, 62, f"{sizes}, {config.num_hidden_layers} layers", 14, "start", kind="muted")
    lefts = [_MARGIN, _MARGIN + model_panel.WIDTH + _GAP]
    lefts.append(lefts[1] + attention_panel.WIDTH + _GAP)
    model_panel.draw_model(scene, config, lefts[0], _HEADER + (body + tall) / 2 - 6)
    # The panels of single parts stand in frames of their own, at the top.
    top = float(_HEADER)
    for draw, tall in mixers:
        scene.frame(lefts[1], top, attention_panel.WIDTH, tall, "norms")
        draw(scene, config, lefts[1], top)
        top += tall + _GAP
    scene.frame(lefts[2], _HEADER, channel_panel.WIDTH, channel_panel.HEIGHT, "norms")
    channel_panel.draw_channel(scene, config, lefts[2], _HEADER)
    top = _HEADER + body + 20
    _draw_bar(scene, top, f"parameters  {human(counts.total)}", counts.parts)
    _draw_bar(scene, top + 46, f"FLOPs a token  {human(flops.total, SI)}", flops.parts)
    scene.say(_MARGIN, top + 79, f"forward, {described.context:,} tokens of context", 11, "start", kind="muted")
    _draw_legend(scene, top + 108, counts.parts, flops.parts)
    return scene.svg(WIDTH, height, f"{title}: the network", _describe(config, sizes)), scene


def _mixers(config: ModelConfig) -> list[tuple[Callable[[Scene, ModelConfig, float, float], None], int]]:
    """The panels of the kinds of token mixing there are, and their heights; they lie one under the other."""
    mixers: list[tuple[Callable[[Scene, ModelConfig, float, float], None], int]] = []
    if config.num_kda_layers:
        mixers.append((delta_panel.draw_delta, delta_panel.HEIGHT))
    if config.num_kda_layers < config.num_hidden_layers:
        mixers.append((attention_panel.draw_attention, attention_panel.HEIGHT))
    return mixers


def _draw_bar(scene: Scene, top: float, label: str, parts: Mapping[str, int]) -> None:
    """One bar of the parts' shares, under its name."""
    total = sum(parts.values())
    scene.say(_MARGIN, top + 17, label, 13, "start", bold=True)
    left, room = _MARGIN + 210.0, WIDTH - 2 * _MARGIN - 210.0
    for part, number in parts.items():
        width = room * number / total
        if width < 0.5:
            continue
        scene.boxes.append(Box(left, top, width, 24, part, "solid"))
        percent = f"{number / total:.0%}"
        if width > 44:
            scene.say(left + width / 2, top + 17, percent, 12, kind="onsolid", bold=True, room=width - 6)
        left += width


def _draw_legend(scene: Scene, top: float, parameters: Mapping[str, int], flops: Mapping[str, int]) -> None:
    """Each part's colour, name and two numbers."""
    names = [part for part in _NAMES if parameters.get(part) or flops.get(part)]
    step = (WIDTH - 2 * _MARGIN) / max(len(names), 1)
    for i, part in enumerate(names):
        x = _MARGIN + i * step
        scene.boxes.append(Box(x, top, 11, 11, part, "solid"))
        scene.say(x + 17, top + 10, _NAMES[part], 12, "start", room=step - 20)
        lines = [f"{human(n)} parameters" for n in (parameters.get(part),) if n]
        lines += [f"{human(n, SI)} FLOPs" for n in (flops.get(part),) if n]
        for line, text in enumerate(lines):
            scene.say(x + 17, top + 27 + 15 * line, text, 11, "start", kind="muted", room=step - 20)


def _describe(config: ModelConfig, sizes: str) -> str:
    """The drawing in words, for those who cannot see it."""
    experts = f" {words.choice_name(config)} experts" if config.n_routed_experts else ""
    shared = f" and {words.shared_name(config)}" if config.n_routed_experts and config.n_shared_experts else ""
    return (
        f"{sizes}. Tokens are embedded into a residual stream of width {config.hidden_size:,}; "
        f"{config.num_hidden_layers} layers each add {_mixing(config)} and a feed-forward part"
        f"{' (' + experts.strip() + shared + ')' if experts else ''}; a norm and the head give the logits."
    )


def _mixing(config: ModelConfig) -> str:
    attention = f"{words.attention_title(config).lower()} with {config.num_attention_heads} heads"
    if not config.num_kda_layers:
        return attention
    return f"{words.kda_title()} with {words.state_heads(config)} heads (in {words.mixer_share(config)}) or {attention}"
