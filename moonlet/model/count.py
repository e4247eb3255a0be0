"""How big a model is: exact counts, taken from the modules themselves and not from a formula beside them.

The model is built on the meta device, where a trillion parameters take no memory, and its tensors are sorted by name:

    total  = embedding + head + norms + attention + kda + dense + router + routed experts + shared experts
    active = total - embedding - head - routed experts * (1 - A/E)       what one token passes through

A head tied to the embedding has no parameters of its own and is counted once, as the embedding.

MLA's cache keeps kv_lora_rank + qk_rope_head_dim numbers a token and layer, GQA's 2 G head_dim; plain multi-head
attention with the same heads would keep the keys and values of each, H (K + P + V) or 2 H head_dim. KDA's keeps nothing
a token: H K V numbers a layer in fp32, and the last W - 1 inputs of its convolutions of q, k and v.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Size

from moonlet.config import ModelConfig
from moonlet.model.init import build

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters, the routers' correction bias included, as a checkpoint holds them."""

    embedding: int = 0
    head: int = 0  # 0 where it is the embedding's matrix
    norms: int = 0  # the two of each layer and the final one
    attention: int = 0  # its latent norms included
    kda: int = 0  # Kimi delta attention, its filters, rates and norms included
    dense: int = 0  # the feed-forward part of the layers without experts
    router: int = 0
    routed_experts: int = 0
    shared_experts: int = 0
    routed_experts_active: int = 0  # the part of routed_experts one token passes through; not a part of its own

    @property
    def parts(self) -> dict[str, int]:
        """The parts by name; they sum to `total`."""
        names = (
            "embedding", "attention", "kda", "dense", "router", "routed_experts", "shared_experts", "norms", "head",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.parts.values())

    @property
    def active(self) -> int:
        """What one token passes through, without embedding and head."""
        return self.total - self.embedding - self.head - self.routed_experts + self.routed_experts_active

    @property
    def active_with_head(self) -> int:
        """What one token is multiplied with, the head included (a tied one is as large as the embedding)."""
        return self.active + (self.head or self.embedding)

    @property
    def active_with_embedding(self) -> int:
        """What one token passes through, with head and the whole embedding table."""
        return self.active + self.head + self.embedding


def shapes(config: ModelConfig) -> dict[str, Size]:
    """Name and shape of every tensor in a model's state, experts stacked, in the order of the modules."""
    return {name: value.shape for name, value in build(config, device="meta").state_dict().items()}


def count(config: ModelConfig, tensors: Mapping[str, Size] | None = None) -> Counts:
    """Count the parameters of a model of this configuration.

    Args:
        config: of any size.
        tensors: what `shapes(config)` returned, where the caller has it already.

    Raises:
        ValueError: a tensor that belongs to no known part, so that nothing is ever left out of a total.
    """
    sums = dict.fromkeys(Counts().parts, 0)
    for name, shape in (shapes(config) if tensors is None else tensors).items():
        sums[part_of(name, config)] += shape.numel()
    experts = max(config.n_routed_experts, 1)
    assert sums["routed_experts"] % experts == 0, "experts differ in size"
    return Counts(**sums, routed_experts_active=sums["routed_experts"] // experts * config.num_experts_per_tok)


def part_of(name: str, config: ModelConfig) -> str:
    """Which of `Counts.parts` the tensor `name` of a model's state belongs to."""
    layer = _LAYER.match(name)
    mixer = "kda" if layer is not None and config.is_kda(int(layer[1])) else "attention"
    for piece, part in (
        ("embed_tokens.", "embedding"),
        ("lm_head.", "head"),
        (".self_attn.", mixer),
        (".mlp.gate.", "router"),
        (".mlp.experts.", "routed_experts"),
        (".mlp.shared_experts.", "shared_experts"),
        (".mlp.", "dense"),
        ("norm.", "norms"),
    ):
        if piece in name:
            return part
    raise ValueError(f"tensor {name!r} belongs to no part that count knows")


def cache_bytes_per_token(config: ModelConfig, bytes_per_value: int = 2) -> int:
    """Bytes the model's cache takes for each token, over all layers that attend; two bytes a value are bf16."""
    if config.kv_lora_rank is None:
        per_layer = 2 * config.num_key_value_heads * config.head_dim
    else:
        per_layer = config.kv_lora_rank + config.qk_rope_head_dim
    return per_layer * (config.num_hidden_layers - config.num_kda_layers) * bytes_per_value


def state_bytes(config: ModelConfig) -> int:
    """Bytes of KDA's states for each text, over all layers, in fp32, whatever its length."""
    linear = config.linear_attn_config
    return 4 * linear.width * linear.head_dim * config.num_kda_layers if linear else 0


def conv_cache_bytes(config: ModelConfig, bytes_per_value: int = 2) -> int:
    """Bytes of the last inputs of KDA's convolutions for each text, over all layers."""
    linear = config.linear_attn_config
    if linear is None:
        return 0
    return 3 * (linear.short_conv_kernel_size - 1) * linear.width * config.num_kda_layers * bytes_per_value


def full_cache_bytes_per_token(config: ModelConfig, bytes_per_value: int = 2) -> int:
    """Bytes a cache of whole keys and values would take: those of every query head of the layers that attend."""
    value = config.head_dim if config.kv_lora_rank is None else config.v_head_dim
    per_layer = config.num_attention_heads * (config.qk_head_dim + value)
    return per_layer * (config.num_hidden_layers - config.num_kda_layers) * bytes_per_value
