"""Grouped-query attention (arXiv 2305.13245): H query heads share G heads of keys and values.

    q = x W_q   [H heads],   k = x W_k,  v = x W_v   [G heads]
    y = softmax(rope(q) rope(k)^T K^-1/2) v W_o        query head h attends to key head h // (H / G)

G = H is multi-head attention, G = 1 multi-query attention. Rope turns halves, (i, i + P/2), of the first P channels of
a head; Llama and GLM-4 Mixture-of-Experts have the same tensors under the same names. The cache holds the turned keys
and the values, 2 G K numbers a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moonlet.config import ModelConfig
from moonlet.model.cache import KeyValueCache
from moonlet.model.linear import Linear
from moonlet.model.peaks import LogitPeaks
from moonlet.model.rope import Rotation, rotate_halves
from moonlet.ops.attention import attention
from moonlet.ops.region import region


class GQA(nn.Module):
    """Token mixing with keys and values of their own width, K = `head_dim`. Parameter names are the checkpoint's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.groups, self.K = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.scale = config.softmax_scale
        D = config.hidden_size
        self.q_proj = Linear(D, self.heads * self.K)
        self.k_proj = Linear(D, self.groups * self.K)
        self.v_proj = Linear(D, self.groups * self.K)
        self.o_proj = Linear(self.heads * self.K, D)
        self.peaks: LogitPeaks | None = None  # set while logits are tracked; training only, never with a cache

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None,
        start: int | Tensor = 0,
        cache: KeyValueCache | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Mix tokens.

        Args:
            x: [B, T, D], already normed.
            rotation: of the T positions.
            start: tokens in the cache before these, int or int64 [B].
            cache: this layer's, or None to attend among the T tokens only.
            documents: int64 [B, T]; tokens see their own document only. Without a cache.

        Returns:
            [B, T, D]
        """
        assert rotation is not None, "keys without position are MLA's alone"
        q, k, v = self.projected(x, rotation)
        if cache is not None:
            k, v = cache.append(torch.stack((k, v)), start)  # (B, G, S, K)
        elif self.peaks is not None and self.training:
            self.peaks.see(q, k, self.scale, start, documents)
        out = attention(q, k, v, scale=self.scale, start=start, documents=documents)  # (B, H, T, K)
        mixed: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return mixed

    @region
    def projected(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Turned queries [B, H, T, K] and keys [B, G, T, K], and values [B, G, T, K]."""
        B, T, _ = x.shape
        q = rotate_halves(self.q_proj(x).view(B, T, self.heads, self.K), rotation).transpose(1, 2)  # (B, H, T, K)
        k = rotate_halves(self.k_proj(x).view(B, T, self.groups, self.K), rotation).transpose(1, 2)  # (B, G, T, K)
        v = self.v_proj(x).view(B, T, self.groups, self.K).transpose(1, 2)  # (B, G, T, K)
        return q, k, v
