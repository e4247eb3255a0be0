"""The whole model: tokens at the bottom, the residual stream upward, the layers' two branches at its right."""

from __future__ import annotations

from moonlet.config import ModelConfig
from moonlet.plot.network import words
from moonlet.plot.network.scene import Scene
from moonlet.plot.network.stack import Run, layer_runs

WIDTH = 400
_STREAM = 52  # x of the residual stream inside the panel
_BRANCH = 66  # height of one branch
_FRAME_TOP, _FRAME_GAP = 34, 20
_ENDS = 196  # what lies above and below the layers, together


def model_height(config: ModelConfig) -> float:
    """Pixels the panel needs."""
    frames = (_FRAME_TOP + 2 * _BRANCH * len(run.pattern) + 8 + _FRAME_GAP for run in layer_runs(config))
    return _ENDS + sum(frames)


def draw_model(scene: Scene, config: ModelConfig, left: float, bottom: float) -> None:
    """Draw upward from `bottom`; everything lies right of `left` and within WIDTH."""
    x = left + _STREAM
    D, V = f"{config.hidden_size:,}", f"{config.vocab_size:,}"
    tied = config.tie_word_embeddings
    y = bottom
    scene.say(x, y - 4, "tokens", kind="muted")
    scene.box(left + 14, y - 56, 220, 34, "embedding", f"embedding  {V} → {D}")
    if tied:
        scene.say(left + 244, y - 34, "same matrix as the head", 11, "start", kind="muted")
    start = y = y - 56
    scene.say(x + 12, y - 10, f"{D}, the residual stream", 11, "start", kind="muted")
    y -= _FRAME_GAP + 4
    for run in layer_runs(config):
        y = _draw_run(scene, config, run, left, y) - _FRAME_GAP
    y -= 8
    scene.wire((x, start), (x, y - 24), arrow=False, kind="stream")
    scene.box(left + 14, y - 20, 110, 26, "norms", "RMSNorm")
    scene.wire((x, y - 20), (x, y - 38))
    scene.box(left + 14, y - 74, 220, 34, "head", f"head  {D} → {V}")
    if tied:
        scene.say(left + 244, y - 52, "the embedding's matrix", 11, "start", kind="muted")
    scene.wire((x, y - 74), (x, y - 90))
    scene.say(x, y - 96, "logits", kind="muted")


def _draw_run(scene: Scene, config: ModelConfig, run: Run, left: float, bottom: float) -> float:
    """A frame with the layers of one pattern; returns its top."""
    height = _FRAME_TOP + 2 * _BRANCH * len(run.pattern) + 8
    top = bottom - height
    scene.frame(left + 8, top, WIDTH - 16, height, "norms")
    scene.say(left + _STREAM + 22, top + 22, run.name.replace("-", "–"), 13, "start", bold=True)
    if run.times > 1:
        scene.say(left + WIDTH - 20, top + 23, f"× {run.times}", 17, "end", bold=True)
    y = bottom - 4
    for moe, kda in run.pattern:
        y = _draw_branch(scene, left, y, "kda" if kda else "attention", *words.mixer_name(config, kda))
        if moe:
            label = f"{config.num_experts_per_tok} of {config.n_routed_experts} experts"
            shared = f"+ {config.n_shared_experts} shared, " if config.n_shared_experts else ""
            wide = f"{shared}{config.moe_intermediate_size:,} wide"
            y = _draw_branch(scene, left, y, "routed_experts", label, wide)
        else:
            y = _draw_branch(scene, left, y, "dense", "dense SwiGLU", f"{config.intermediate_size:,} wide")
    return top


def _draw_branch(scene: Scene, left: float, bottom: float, kind: str, *labels: str) -> float:
    """Out of the stream, through a norm and a mixer, and added back; returns its top."""
    x, middle, top = left + _STREAM, bottom - 22, bottom - _BRANCH + 10
    right = left + WIDTH - 28
    scene.wire((x, middle), (left + 90, middle))
    scene.box(left + 92, middle - 14, 76, 28, "norms", "RMSNorm", size=12)
    scene.wire((left + 168, middle), (left + 188, middle))
    scene.box(left + 190, middle - 19, right - left - 206, 38, kind, *labels)
    scene.wire((right - 16, middle), (right, middle), (right, top), (x + 10, top))
    scene.plus(x, top)
    return bottom - _BRANCH
