"""What the drawings say, said once: names, widths and counts, from the configuration."""

from __future__ import annotations

from moonlet.config import ModelConfig


def is_latent(config: ModelConfig) -> bool:
    """Whether attention is MLA, with a latent, and not heads with keys and values of their own."""
    return config.kv_lora_rank is not None


def attention_name(config: ModelConfig) -> str:
    """MLA, GQA, MQA or MHA."""
    if is_latent(config):
        return "MLA"
    groups = config.num_key_value_heads
    return "MHA" if groups == config.num_attention_heads else "MQA" if groups == 1 else "GQA"


def attention_title(config: ModelConfig) -> str:
    """The full name of `attention_name`."""
    return {
        "MLA": "Multi-head latent attention",
        "GQA": "Grouped-query attention",
        "MQA": "Multi-query attention",
        "MHA": "Multi-head attention",
    }[attention_name(config)]


def kda_title() -> str:
    """The full name of KDA."""
    return "Kimi delta attention"


def mixer_name(config: ModelConfig, kda: bool) -> tuple[str, str]:
    """A layer's token mixing and what is to be said of it: MLA and 64 heads, RoPE."""
    if kda:
        return "KDA", f"{state_heads(config)} heads, a state each"
    return attention_name(config), f"{config.num_attention_heads} heads, {'no position' if is_nope(config) else 'RoPE'}"


def mixer_share(config: ModelConfig) -> str:
    """20 of 27 layers."""
    return f"{config.num_kda_layers} of {config.num_hidden_layers} layers"


def is_nope(config: ModelConfig) -> bool:
    """Whether attention rotates nothing."""
    return config.mla_use_nope


def state_heads(config: ModelConfig) -> int:
    """Heads of KDA."""
    return config.linear_attn_config.num_heads if config.linear_attn_config else 0


def state_name(config: ModelConfig) -> str:
    """What KDA keeps a layer: 32 × 128 × 128."""
    linear = config.linear_attn_config
    return f"{linear.num_heads} × {linear.head_dim} × {linear.head_dim}" if linear else ""


def heads_by(config: ModelConfig, width: int) -> str:
    """64 × 128: a width for each head."""
    return f"{config.num_attention_heads} × {width}"


def shared_width(config: ModelConfig) -> int:
    """Inner width of the shared experts, which are one matrix."""
    return config.n_shared_experts * config.moe_intermediate_size


def shared_name(config: ModelConfig) -> str:
    """1 shared expert, 2 shared experts."""
    return f"{config.n_shared_experts} shared expert{'s' * (config.n_shared_experts > 1)}"


def choice_name(config: ModelConfig) -> str:
    """How the router scores and picks: top 8 of 384."""
    picked = f"top {config.num_experts_per_tok} of {config.n_routed_experts}"
    return f"{picked}, {config.topk_group} of {config.n_group} groups" if config.n_group > 1 else picked


def position_name(config: ModelConfig) -> str:
    """RoPE and its scaling: RoPE θ 50,000, YaRN × 32; or that there is none."""
    if is_nope(config):
        return "no position (NoPE)"
    scaling = config.rope_scaling
    plain = f"RoPE θ {config.rope_theta:,.0f}"
    if not is_latent(config) and config.rope_width < config.head_dim:
        plain += f" on {config.rope_width} of {config.head_dim}"
    if scaling is None:
        return plain
    kinds = {"yarn": "YaRN", "linear": "linear", "dynamic": "dynamic NTK"}
    return f"{plain}, {kinds.get(scaling.type, scaling.type)} × {scaling.factor:g}"


def scale_name(config: ModelConfig) -> str:
    """The softmax scale, four digits."""
    return f"{config.softmax_scale:.4g}"


def cached_width(config: ModelConfig) -> int:
    """Numbers the cache keeps a token and layer."""
    if config.kv_lora_rank is not None:
        return config.kv_lora_rank + config.qk_rope_head_dim
    return 2 * config.num_key_value_heads * config.head_dim
