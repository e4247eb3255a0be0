"""One layer's feed-forward part: the mixture of experts, and what a single SwiGLU is."""

from __future__ import annotations

from moonlet.config import ModelConfig
from moonlet.plot.network import words
from moonlet.plot.network.scene import Scene

WIDTH, HEIGHT = 460, 590


def draw_channel(scene: Scene, config: ModelConfig, left: float, top: float) -> None:
    """Draw within WIDTH x HEIGHT: experts above and a SwiGLU below, or the SwiGLU alone."""
    kinds = {config.is_moe(i) for i in range(config.num_hidden_layers)}
    if True not in kinds:
        scene.say(left + 16, top + 28, "Dense feed-forward", 16, "start", bold=True)
        _draw_swiglu(scene, config, left, top + 220, "dense", f"{config.intermediate_size:,}")
        return
    scene.say(left + 16, top + 28, "Mixture of experts", 16, "start", bold=True)
    chosen = f"{config.num_experts_per_tok} of {config.n_routed_experts:,} experts a token"
    scene.say(left + 16, top + 47, f"{chosen}, {config.moe_intermediate_size:,} wide", 12, "start", kind="muted")
    _draw_experts(scene, config, left, top)
    scene.wire((left + 16, top + 420), (left + WIDTH - 16, top + 420), arrow=False)
    scene.say(left + 16, top + 444, "Each expert is a SwiGLU", 13, "start", bold=True)
    if False in kinds:
        note = f"dense layers: one, {config.intermediate_size:,} wide"
        scene.say(left + WIDTH - 16, top + 444, note, 11, "end", kind="muted")
    _draw_swiglu(scene, config, left, top + 452, "routed_experts", f"{config.moe_intermediate_size:,}")


def _draw_experts(scene: Scene, config: ModelConfig, left: float, top: float) -> None:
    D, E, A = f"{config.hidden_size:,}", config.n_routed_experts, config.num_experts_per_tok
    shared = bool(config.n_shared_experts)
    row, sum_y, sum_x = top + 196, top + 92, left + 150
    scene.wire((sum_x, sum_y), (sum_x, top + 62))
    scene.say(sum_x + 10, top + 76, D, 11, "start", kind="muted")
    scene.plus(sum_x, sum_y)
    weights = "weighted sum" + ("" if config.routed_scaling_factor == 1 else f" × {config.routed_scaling_factor:g}")
    scene.box(sum_x - 85, top + 122, 170, 28, "routed_experts", weights, size=12)
    scene.wire((sum_x, top + 122), (sum_x, sum_y + 10))
    numbers, chosen = _pictured(E, A)
    step = 268 / max(len(numbers), 1)
    for i, number in enumerate(numbers):
        x = left + 16 + i * step
        if number is None:
            scene.say(x + step / 2, row + 30, "…", 14, kind="muted")
            continue
        scene.box(x + 2, row, step - 4, 48, "routed_experts" if number in chosen else "norms", f"{number:,}", size=12)
        if number in chosen:
            scene.wire((x + step / 2, row), (x + step / 2, row - 22), (sum_x, row - 22), (sum_x, top + 152))
            scene.wire((x + step / 2, top + 286), (x + step / 2, row + 50))
    groups = f", {config.topk_group} of {config.n_group} groups" if config.n_group > 1 else ""
    scene.box(
        left + 16, top + 286, 268, 42, "router", f"router: top {A}{groups}",
        f"{config.scoring_func}(W x) + bias, {D} → {E:,}",
    )  # fmt: skip
    middle = left + 150
    scene.wire((middle, top + 386), (middle, top + 330))
    scene.say(middle, top + 400, f"x  {D}, normed", 12, kind="muted")
    if shared:
        x = left + 376
        scene.box(left + 308, row - 6, 136, 60, "shared_experts", words.shared_name(config), _wide(config))
        scene.wire((middle, top + 360), (x, top + 360), (x, row + 56))
        scene.wire((x, row - 6), (x, sum_y), (sum_x + 10, sum_y))
        scene.say(x - 8, row + 72, "every token", 11, "end", kind="muted")


def _wide(config: ModelConfig) -> str:
    return f"{words.shared_width(config):,} wide"


def _pictured(experts: int, active: int) -> tuple[list[int | None], set[int]]:
    """Which experts to show (None: left out), and which of them as chosen: some of the active ones."""
    if experts <= 7:
        return list(range(1, experts + 1)), set(range(2, 2 + min(active, experts - 1))) or {1}
    chosen = {2} if active == 1 else {2, experts - 1}
    return [1, 2, 3, None, experts - 2, experts - 1, experts], chosen


def _draw_swiglu(scene: Scene, config: ModelConfig, left: float, top: float, kind: str, inner: str) -> None:
    """down(silu(gate x) * up x), from left to right; 120 high."""
    D = f"{config.hidden_size:,}"
    upper, lower, middle = top + 34, top + 90, top + 62
    scene.say(left + 16, middle + 4, "x", 13, "start")
    scene.wire((left + 28, middle), (left + 44, middle), (left + 44, upper), (left + 62, upper))
    scene.wire((left + 44, middle), (left + 44, lower), (left + 62, lower))
    scene.box(left + 64, upper - 19, 132, 38, kind, "gate", f"{D} → {inner}")
    scene.box(left + 64, lower - 19, 132, 38, kind, "up", f"{D} → {inner}")
    scene.wire((left + 196, upper), (left + 212, upper))
    scene.box(left + 214, upper - 13, 48, 26, kind, "silu", size=12)
    scene.wire((left + 262, upper), (left + 280, upper), (left + 280, middle - 12))
    scene.wire((left + 196, lower), (left + 280, lower), (left + 280, middle + 12))
    scene.say(left + 280, middle + 5, "×", 16, bold=True)
    scene.wire((left + 290, middle), (left + 306, middle))
    scene.box(left + 308, middle - 19, 132, 38, kind, "down", f"{inner} → {D}")
