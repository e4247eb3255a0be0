"""One layer: x = x + mix_tokens(norm(x)); x = x + mix_channels(norm(x)).

The two functions below are where a layer's kind is decided, from the configuration and the layer's index alone.
"""

from __future__ import annotations

from torch import Tensor, nn

from moonlet.config import ModelConfig
from moonlet.model.cache import LayerCache
from moonlet.model.ffn import SwiGLU
from moonlet.model.gqa import GQA
from moonlet.model.kda import KDA
from moonlet.model.mla import MLA
from moonlet.model.moe import MoE
from moonlet.model.norm import RMSNorm
from moonlet.model.rope import Rotation


def token_mixer(config: ModelConfig, layer: int) -> MLA | GQA | KDA:
    """What mixes the tokens of layer `layer` (0-indexed): the delta rule, or attention over latents or over grouped
    keys and values."""
    if config.is_kda(layer):
        return KDA(config)
    return GQA(config) if config.kv_lora_rank is None else MLA(config)


def channel_mixer(config: ModelConfig, layer: int) -> SwiGLU | MoE:
    """The feed-forward part of layer `layer` (0-indexed): dense, or a mixture of experts."""
    return MoE(config) if config.is_moe(layer) else SwiGLU(config.hidden_size, config.intermediate_size)


class Layer(nn.Module):
    """A decoder layer with its two norms."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = token_mixer(config, layer)
        self.mlp = channel_mixer(config, layer)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None,
        start: int | Tensor,
        cache: LayerCache | None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]"""
        x = x + self.self_attn(self.input_layernorm(x), rotation, start, cache, documents)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out
