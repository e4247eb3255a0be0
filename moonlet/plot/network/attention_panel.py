"""One layer's attention, from the normed stream at the bottom to what is added back at the top."""

from __future__ import annotations

from moonlet.config import ModelConfig
from moonlet.plot.network import words
from moonlet.plot.network.scene import Scene

WIDTH, HEIGHT = 510, 590


def draw_attention(scene: Scene, config: ModelConfig, left: float, top: float) -> None:
    """Draw within WIDTH x HEIGHT."""
    D = f"{config.hidden_size:,}"
    value = config.v_head_dim if words.is_latent(config) else config.head_dim
    H = config.num_attention_heads
    scene.say(left + 16, top + 28, words.attention_title(config), 16, "start", bold=True)
    scene.say(left + 16, top + 47, words.position_name(config), 12, "start", kind="t-rope")
    x = left + WIDTH / 2
    scene.wire((x, top + 84), (x, top + 66))
    scene.say(x + 10, top + 76, D, 11, "start", kind="muted")
    scene.box(x - 70, top + 84, 140, 30, "attention", "o")
    scene.wire((x, top + 148), (x, top + 116))
    scene.say(x + 10, top + 136, f"{H} × {value} = {H * value:,}", 11, "start", kind="muted")
    scene.box(left + 16, top + 148, WIDTH - 32, 40, "scores", f"softmax(q kᵀ × {words.scale_name(config)}) v, causal")
    (_latent if words.is_latent(config) else _grouped)(scene, config, left, top)
    scene.say(x, top + HEIGHT - 8, f"x  {D}, normed", 12, kind="muted")


def _latent(scene: Scene, config: ModelConfig, left: float, top: float) -> None:
    K, P, V = (words.heads_by(config, w) for w in (config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim))
    second = "q, unturned" if words.is_nope(config) else "q, turned"
    cells = ((16, 104, "q", K), (124, 92, second, P), (296, 96, "k", K), (398, 96, "v", V))
    for x, w, name, width in cells:
        scene.wire((left + x + w / 2, top + 214), (left + x + w / 2, top + 190))
        scene.box(left + x, top + 216, w, 40, "attention", name, width)
    _draw_query(scene, config, left, top)
    _draw_latents(scene, config, left, top)
    middle = left + WIDTH / 2
    scene.wire((middle, top + 566), (middle, top + 550), (left + 116, top + 550), (left + 116, top + 528))
    scene.wire((middle, top + 550), (left + 372, top + 550), (left + 372, top + 528))


def _draw_query(scene: Scene, config: ModelConfig, left: float, top: float) -> None:
    turned, plain = left + 170, left + 68
    _turn(scene, config, turned, top + 322, top + 272, top + 258)
    scene.wire((plain, top + 322), (plain, top + 258))
    if config.q_lora_rank is None:
        scene.box(left + 16, top + 322, 200, 34, "attention", "q")
        scene.wire((left + 116, top + 526), (left + 116, top + 358))
        return
    scene.box(left + 16, top + 322, 200, 34, "attention", "q_b")
    scene.wire((left + 116, top + 404), (left + 116, top + 358))
    scene.box(left + 76, top + 404, 80, 26, "norms", "RMSNorm", size=12)
    scene.wire((left + 116, top + 492), (left + 116, top + 432))
    scene.say(left + 126, top + 466, f"latent {config.q_lora_rank:,}", 11, "start", kind="muted")
    scene.box(left + 16, top + 492, 200, 34, "attention", "q_a")


def _draw_latents(scene: Scene, config: ModelConfig, left: float, top: float) -> None:
    """kv_a, its two outputs, what of them is cached, and kv_b."""
    key, latent = left + 258, left + 352
    scene.box(left + 296, top + 290, 198, 34, "attention", "kv_b")
    for x in (left + 344, left + 446):
        scene.wire((x, top + 290), (x, top + 258))
    scene.frame(left + 222, top + 346, 276, 68, "cache", "cache")
    scene.say(left + 490, top + 362, f"cached: {words.cached_width(config):,} a token", 11, "end", kind="t-cache")
    scene.box(left + 228, top + 370, 60, 38, "attention", "k", f"{config.qk_rope_head_dim}")
    scene.box(left + 300, top + 370, 190, 38, "attention", "latent", f"{config.kv_lora_rank:,}")
    scene.wire((key, top + 370), (key, top + 190))
    for i, line in enumerate(("one key", "for all", "heads")):
        scene.say(key - 8, top + 282 + 14 * i, line, 11, "end", kind="muted")
    scene.wire((latent, top + 370), (latent, top + 326))
    _turn(scene, config, key, top + 492, top + 436, top + 410)
    scene.box(latent - 40, top + 436, 80, 26, "norms", "RMSNorm", size=12)
    scene.wire((latent, top + 436), (latent, top + 410))
    scene.wire((latent, top + 492), (latent, top + 464))
    scene.box(left + 228, top + 492, 262, 34, "attention", "kv_a")


def _grouped(scene: Scene, config: ModelConfig, left: float, top: float) -> None:
    H, G, W = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    columns = ((16, "q", H), (186, "k", G), (356, "v", G))
    scene.frame(left + 178, top + 262, 324, 84, "cache", "cache")
    scene.say(left + 340, top + 280, f"cached: {words.cached_width(config):,} a token", 11, kind="t-cache")
    for x, name, heads in columns:
        middle = left + x + 69
        scene.wire((middle, top + 290), (middle, top + 190))
        scene.box(left + x, top + 292, 138, 44, "attention", name, f"{heads} × {W}")
        scene.wire((middle, top + 492), (middle, top + 338))
        if name != "v":
            _rope(scene, middle, top + 388)
        scene.box(left + x, top + 492, 138, 34, "attention", f"{name}_proj")
        scene.wire((left + WIDTH / 2, top + 566), (left + WIDTH / 2, top + 550), arrow=False)
        scene.wire((left + WIDTH / 2, top + 550), (middle, top + 550), (middle, top + 528))
    if G < H:
        scene.say(left + 340, top + 465, f"each serves {H // G} query heads", 11, kind="muted")


def _turn(scene: Scene, config: ModelConfig, x: float, start: float, y: float, end: float) -> None:
    """A wire upward from `start` to `end`, through rope at `y` unless nothing is rotated."""
    if words.is_nope(config):
        scene.wire((x, start), (x, end))
        return
    _rope(scene, x, y)
    scene.wire((x, y), (x, end))
    scene.wire((x, start), (x, y + 28))


def _rope(scene: Scene, x: float, y: float) -> None:
    """Where positions turn what passes; 26 high."""
    scene.box(x - 29, y, 58, 26, "rope", "RoPE", size=12)
