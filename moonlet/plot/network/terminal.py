"""The network in characters: the residual stream runs down the left, what it passes leaves it and is added back."""

from __future__ import annotations

from collections.abc import Iterator

from moonlet.config import ModelConfig
from moonlet.plot.network import words
from moonlet.plot.network.stack import Kind, Run, layer_runs

COLUMNS = 76  # what the drawing takes; narrower terminals get an outline

_ASCII = str.maketrans("│─┌┐└┘├┤┬┴┼╭╮╰╯▶◀⊕×·→θᵀ┄", "|-++++|||++++++><+x.>TT-")


def draw_network_text(config: ModelConfig, width: int = 80, plain: bool = False) -> str:
    """Draw the network of `config` in characters.

    Args:
        width: columns there are; where the drawing does not fit it becomes an outline.
        plain: ASCII only, for terminals that know no more.
    """
    lines = [line.rstrip() for line in _drawing(config)]
    if max(map(len, lines)) > width:
        lines = list(_outline(config))
    text = "\n".join(lines)
    return text.translate(_ASCII) if plain else text


def _drawing(config: ModelConfig) -> Iterator[str]:
    D = f"{config.hidden_size:,}"
    tied = config.tie_word_embeddings
    yield "  tokens"
    yield from _box(f"embedding {config.vocab_size:,} → {D}" + "   its matrix is the head's too" * tied)
    yield f"    │ {D}"
    for run in layer_runs(config):
        yield from _run(config, run)
    yield "    │ RMSNorm"
    yield from _box(f"head {D} → {config.vocab_size:,}" + "   the embedding's matrix" * tied)
    yield "  logits"
    if config.num_kda_layers:
        yield ""
        yield from _delta(config)
    if config.num_kda_layers == config.num_hidden_layers:
        return
    yield ""
    yield from _latent(config) if words.is_latent(config) else _grouped(config)


def _box(text: str) -> Iterator[str]:
    yield f"  ┌─┴{'─' * len(text)}┐"
    yield f"  │ {text} │"
    yield f"  └─┬{'─' * len(text)}┘"


def _run(config: ModelConfig, run: Run) -> Iterator[str]:
    """A frame around the layers of one pattern."""
    title = f" {run.name} "
    times = f" × {run.times} ─" if run.times > 1 else "─"
    yield f"  ╭─┼─{title}{'─' * (COLUMNS - 7 - len(title) - len(times))}{times}╮"
    for kind in run.pattern:
        for line in _layer(config, kind):
            yield f"  │{line:{COLUMNS - 4}}│"
    yield f"  ╰─┼{'─' * (COLUMNS - 6)}╯"


def _layer(config: ModelConfig, kind: Kind) -> Iterator[str]:
    D = f"{config.hidden_size:,}"
    end = COLUMNS - 9  # column where what leaves the stream turns back

    def row(start: str, text: str, turn: str) -> str:
        return f"{start}{text}{'─' * (end - len(start) - len(text))}{turn}"

    back = f" ⊕◀{'─' * (end - 3)}╯"
    yield row(" ├─▶ RMSNorm ─▶ ", f"{', '.join(words.mixer_name(config, kind.kda))} ", "╮")
    yield back
    if not kind.moe:
        yield row(" ├─▶ RMSNorm ─▶ ", f"dense SwiGLU {D} → {config.intermediate_size:,} → {D} ", "╮")
    else:
        inner = f"{D} → {config.moe_intermediate_size:,} → {D}"
        yield f" ├─▶ RMSNorm ─┬▶ router, {config.scoring_func} ─▶ {words.choice_name(config)}"
        experts = f"{config.num_experts_per_tok} of {config.n_routed_experts} experts: {inner} "
        if not config.n_shared_experts:
            yield row(" │            └▶ ", experts, "╮")
        else:
            shared = f"{words.shared_name(config)}: {D} → {words.shared_width(config):,} → {D} "
            yield row(" │            ├▶ ", experts, "╮")
            yield row(" │            └▶ ", shared, "┤")
    yield back


def _latent(config: ModelConfig) -> Iterator[str]:
    """MLA: two latents, what is cached, where rope acts."""
    D, H = f"{config.hidden_size:,}", config.num_attention_heads
    K, P, V = (words.heads_by(config, w) for w in (config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim))
    rope, latent = str(config.qk_rope_head_dim), f"{config.kv_lora_rank:,}"
    yield f"  MLA: {words.position_name(config)}; cached a token and layer: {words.cached_width(config):,} numbers"
    low_rank = "" if config.q_lora_rank is None else f"_a ─ {config.q_lora_rank:,} ─▶ RMSNorm ─▶ q_b"
    turned = "" if words.is_nope(config) else "─▶ RoPE "
    query = f"  {D} ─┬▶ q{low_rank} "
    fork = len(f"  {D} ─")
    stem = f"{' ' * fork}│"
    yield _until(f"{query}┬─ {K} ", "q")
    yield _until(f"{stem:{len(query)}}└─ {P} {turned}", "q")
    pair = f"{' ' * fork}└▶ kv_a "
    yield _until(f"{pair}┬─ {rope} {turned}─▶ [{rope} cached] ─ for all heads ", "k")
    value = f"{' ' * len(pair)}└─ {latent} ─▶ RMSNorm ─▶ [{latent} cached] ─▶ kv_b "
    yield _until(f"{value}┬─ {K} ", "k")
    yield _until(f"{' ' * len(value)}└─ {V} ", "v")
    joint = f"{H} × {config.v_head_dim} = {H * config.v_head_dim:,}"
    yield f"  softmax(q kᵀ × {words.scale_name(config)}) v ─ {joint} ─▶ o ─▶ {D}"


def _delta(config: ModelConfig) -> Iterator[str]:
    """KDA: what each token says, and the state that all of it goes through."""
    linear = config.linear_attn_config
    assert linear is not None
    D, H, K = f"{config.hidden_size:,}", linear.num_heads, linear.head_dim
    heads, conv = f"{H} × {K}", f"conv {linear.short_conv_kernel_size} ─▶ SiLU"
    yield f"  KDA, {words.mixer_share(config)}; kept whatever the length: {words.state_name(config)} numbers"
    gap = " " * (len(D) + 4)
    for start, text, end in (
        (f"  {D} ─┬", f"q ─ {heads} ─▶ {conv} ─▶ L2 ", "q"),
        (f"{gap}├", f"k ─ {heads} ─▶ {conv} ─▶ L2 ", "k"),
        (f"{gap}├", f"v ─ {heads} ─▶ {conv} ", "v"),
        (f"{gap}├", f"f_a ─ {K} ─▶ f_b ─ {heads} ─▶ softplus ", "decay"),
        (f"{gap}├", f"b ─ {H} ─▶ sigmoid ", "beta"),
        (f"{gap}└", f"g_a ─ {K} ─▶ g_b ─ {heads} ─▶ sigmoid ", "gate"),
    ):
        yield _until(f"{start}▶ {text}", end)
    yield "  state S of each head: S' = decay S;  S = S' + beta k (v - kᵀS')"
    yield f"  qᵀS ─▶ RMSNorm ─▶ × gate ─ {heads} = {linear.width:,} ─▶ o ─▶ {D}"


def _until(line: str, end: str) -> str:
    """`line` drawn on to the right edge, where its arrow points at `end`."""
    return f"{line}{'─' * (COLUMNS - 2 - len(end) - len(line))}▶ {end}"


def _grouped(config: ModelConfig) -> Iterator[str]:
    """GQA and MHA: heads with keys and values of their own."""
    D, H, G, W = f"{config.hidden_size:,}", config.num_attention_heads, config.num_key_value_heads, config.head_dim
    name, cached = words.attention_name(config), words.cached_width(config)
    yield f"  {name}: {words.position_name(config)}; cached a token and layer: {cached:,} numbers"
    gap = " " * (len(D) + 4)
    keys = f"{G} × {W}"
    lines = (
        f"  {D} ─┬▶ q ─ {H} × {W} ─▶ RoPE ",
        f"{gap}├▶ k ─ {keys} ─▶ RoPE ─▶ [{keys} cached] ",
        f"{gap}└▶ v ─ {keys} ──────────▶ [{keys} cached] ",
    )
    yield from (_until(line, end) for line, end in zip(lines, "qkv", strict=True))
    if G < H:
        yield f"{gap}   each key and value head serves {H // G} query heads"
    yield f"  softmax(q kᵀ × {words.scale_name(config)}) v ─ {H} × {W} = {H * W:,} ─▶ o ─▶ {D}"


def _outline(config: ModelConfig) -> Iterator[str]:
    """The same in lines of under 40 columns."""
    D = f"{config.hidden_size:,}"
    yield f"embedding {config.vocab_size:,} → {D}"
    for run in layer_runs(config):
        yield f"├ {run.name}" + (f" × {run.times}" if run.times > 1 else "")
        for kind in run.pattern:
            yield f"│ + {' '.join(words.mixer_name(config, kind.kda))}"
            if not kind.moe:
                yield f"│ + dense SwiGLU {config.intermediate_size:,}"
                continue
            yield f"│ + {words.choice_name(config)} × {config.moe_intermediate_size:,}"
            if config.n_shared_experts:
                yield f"│   {words.shared_name(config)} × {words.shared_width(config):,}"
    yield "├ RMSNorm"
    yield f"└ head {D} → {config.vocab_size:,}" + " (tied)" * config.tie_word_embeddings
