"""One layer's Kimi delta attention, from the normed stream at the bottom to what is added back at the top."""

from __future__ import annotations

from moonlet.config import ModelConfig
from moonlet.plot.network import words
from moonlet.plot.network.scene import Scene

WIDTH, HEIGHT = 510, 590
_CELL, _STEP, _FIRST = 74, 80, 16  # of the six columns
_STATE = 5 * _STEP - 6  # width of what all columns but the gate lead into


def draw_delta(scene: Scene, config: ModelConfig, left: float, top: float) -> None:
    """Draw within WIDTH x HEIGHT."""
    linear = config.linear_attn_config
    assert linear is not None
    D, heads = f"{config.hidden_size:,}", f"{linear.num_heads} × {linear.head_dim}"
    scene.say(left + 16, top + 28, words.kda_title(), 16, "start", bold=True)
    scene.say(left + 16, top + 47, f"in {words.mixer_share(config)}", 12, "start", kind="muted")
    middle = left + _FIRST + _STATE / 2
    scene.wire((middle, top + 84), (middle, top + 66))
    scene.say(middle + 10, top + 76, D, 11, "start", kind="muted")
    scene.box(middle - 70, top + 84, 140, 30, "kda", "o")
    scene.wire((middle, top + 144), (middle, top + 116))
    scene.say(middle + 10, top + 134, f"{heads} = {linear.width:,}", 11, "start", kind="muted")
    scene.box(middle - 50, top + 144, 100, 28, "kda", "× gate", size=12)
    scene.wire((middle, top + 192), (middle, top + 174))
    scene.box(middle - 40, top + 192, 80, 26, "norms", "RMSNorm", size=12)
    _draw_state(scene, config, left, top)
    scene.wire((middle, top + 252), (middle, top + 220))
    for i, (name, width) in enumerate(
        (("q", heads), ("k", heads), ("v", heads), ("decay", heads), ("beta", f"{linear.num_heads}"), ("gate", heads))
    ):
        _draw_column(scene, config, name, width, left + _FIRST + i * _STEP, top, left + WIDTH / 2)
    gate = left + _FIRST + 5 * _STEP + _CELL / 2
    scene.wire((gate, top + 338), (gate, top + 158), (middle + 52, top + 158))
    scene.say(left + WIDTH / 2, top + HEIGHT - 4, f"x  {D}, normed", 12, kind="muted")
    scene.wire((left + WIDTH / 2, top + 572), (left + WIDTH / 2, top + 562), arrow=False)


def _draw_state(scene: Scene, config: ModelConfig, left: float, top: float) -> None:
    """What is kept of all tokens, and how one changes it."""
    scene.frame(left + _FIRST - 6, top + 228, _STATE + 12, 88, "cache", "cache")
    kept = f"kept: {words.state_name(config)}"
    scene.say(left + _FIRST + _STATE, top + 244, kept, 11, "end", kind="t-cache")
    scene.box(
        left + _FIRST, top + 252, _STATE, 58, "delta", "S = S' + beta k (v − kᵀS')  with  S' = decay S",
        "a matrix a head, read with q; as large after any number of tokens",
    )  # fmt: skip


def _draw_column(scene: Scene, config: ModelConfig, name: str, width: str, x: float, top: float, bus: float) -> None:
    """From the bus at the bottom through a projection, and what becomes of it."""
    linear = config.linear_attn_config
    assert linear is not None
    middle, low = x + _CELL / 2, ("f", "g")[name == "gate"]
    labels = {"beta": ("b",), "decay": (f"{low}_a, {low}_b", f"rank {linear.head_dim}")}
    labels["gate"] = labels["decay"]
    if name != "gate":
        scene.wire((middle, top + 338), (middle, top + 312))
    scene.box(x, top + 338, _CELL, 40, "kda", name, width)
    steps = {
        "q": ("L2", "SiLU", f"conv {linear.short_conv_kernel_size}"),
        "decay": ("softplus",),
        "beta": ("sigmoid",),
        "gate": ("sigmoid",),
    }
    steps |= {"k": steps["q"], "v": ("", *steps["q"][1:])}
    y = top + 380
    for i, step in enumerate(steps[name]):
        if step:
            row = top + 392 + 38 * i
            scene.wire((middle, row), (middle, y))
            scene.box(x + 5, row, _CELL - 10, 24, "norms", step, size=11)
            y = row + 26
    scene.wire((middle, top + 510), (middle, y))
    scene.box(x, top + 510, _CELL, 36, "kda", *labels.get(name, (f"{name}_proj",)), size=12)
    scene.wire((bus, top + 562), (middle, top + 562), (middle, top + 548))
