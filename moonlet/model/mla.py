"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434; as in Kimi-K2, arXiv 2507.20534).

    c_q = norm(x W_qa),  q = c_q W_qb = [q_nope | q_rope] a head         (or q = x W_q without q_lora)
    [c | k_rope] = x W_kva,  c = norm(c)                                 c: R wide;  k_rope: one key for all heads
    [k_nope | v] = c W_kvb a head,  k = [k_nope | rope(k_rope)]
    y = softmax(q k^T scale) v W_o

Only c and the turned k_rope are cached. Expanded: k and v are formed from c, best for many queries. Absorbed: W_kvb's
key half moves into the query and its value half behind the attention, so that every head attends to the cached
entries themselves, best for the few queries of a decode step. Both give the same numbers.

With `mla_use_nope` (Kimi Linear) nothing is turned: the P-wide slices stay as they are and position is left to the
other layers. The scale is then (K + P)^-1/2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moonlet.config import ModelConfig
from moonlet.model.cache import LatentCache
from moonlet.model.linear import Linear
from moonlet.model.norm import LATENT_EPS, RMSNorm
from moonlet.model.peaks import LogitPeaks
from moonlet.model.rope import Rotation, rotate
from moonlet.ops.attention import attention
from moonlet.ops.latent_attention import fits, latent_attention
from moonlet.ops.region import region

# Up to this many new tokens on top of a cache are attended to in absorbed form. The absorbed product costs R + P a
# head and key against K + P, but needs no expansion of the S cached entries.
ABSORB_UP_TO = 8


class MLA(nn.Module):
    """Token mixing of Kimi-K2, Moonlight and DeepSeek-V3, and of one layer in four of Kimi Linear.

    Parameter names are the checkpoint's.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.kv_lora_rank is not None, "without a latent it is another attention"
        self.heads = config.num_attention_heads
        self.K, self.P, self.V = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.R = config.kv_lora_rank
        self.turns = not config.mla_use_nope
        self.scale = config.softmax_scale
        D, H = config.hidden_size, self.heads
        if config.q_lora_rank is None:
            self.q_proj = Linear(D, H * (self.K + self.P))
        else:
            self.q_a_proj = Linear(D, config.q_lora_rank)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, H * (self.K + self.P))
        self.kv_a_proj_with_mqa = Linear(D, self.R + self.P)
        self.kv_a_layernorm = RMSNorm(self.R, LATENT_EPS)
        self.kv_b_proj = Linear(self.R, H * (self.K + self.V))
        self.o_proj = Linear(H * self.V, D)
        self.query_is_low_rank = config.q_lora_rank is not None
        self.peaks: LogitPeaks | None = None  # set while logits are tracked; training only, never with a cache

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None,
        start: int | Tensor = 0,
        cache: LatentCache | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Mix tokens.

        Args:
            x: [B, T, D], already normed.
            rotation: of the T positions; not looked at with `mla_use_nope`.
            start: tokens in the cache before these, int or int64 [B].
            cache: this layer's, or None to attend among the T tokens only.
            documents: int64 [B, T]; tokens see their own document only. Without a cache.

        Returns:
            [B, T, D]
        """
        if cache is None:
            return self._among_themselves(x, rotation if self.turns else None, start, documents)
        q, latent, k_rope = self.latents(x)
        q_nope, q_rope = q.split((self.K, self.P), -1)
        if self.turns:
            assert rotation is not None
            q_rope, k_rope = _turned(q_rope, k_rope, rotation)
        entries = cache.append(torch.cat((latent, k_rope), -1), start)  # (B, S, R+P)
        if x.shape[1] <= ABSORB_UP_TO:
            out = self.absorbed(q_nope, q_rope, entries, start)
        else:
            latent, k_rope = entries.split((self.R, self.P), -1)
            q, k, v = self.expanded(q_nope, q_rope, self.keys_and_values(latent), k_rope)
            out = attention(q, k, v, scale=self.scale, start=start).transpose(1, 2)
        mixed: Tensor = self.o_proj(out.flatten(2))  # (B, T, HV) before
        return mixed

    def _among_themselves(
        self, x: Tensor, rotation: Rotation | None, start: int | Tensor, documents: Tensor | None
    ) -> Tensor:
        """`forward` without a cache."""
        assert (rotation is not None) == self.turns
        peaks = self.peaks if self.training else None
        q, kv, k_rope = self.projected(x)
        if isinstance(start, int) and start == 0 and fits(q, kv, k_rope, self.V, documents):
            out = self.fused(q, kv, k_rope, rotation, documents, peaks)
        else:
            queries, k, v = self.joined(q, kv, k_rope, rotation)
            if peaks is not None:
                peaks.see(queries, k, self.scale, start, documents)
            out = attention(queries, k, v, scale=self.scale, start=start, documents=documents).transpose(1, 2)
        mixed: Tensor = self.o_proj(out.flatten(2))
        return mixed

    def latents(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, H, K+P], and, not turned yet, what is cached: latent [B, T, R] and k_rope [B, T, P]."""
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) if self.query_is_low_rank else self.q_proj(x)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((self.R, self.P), -1)
        return q.view(*x.shape[:2], self.heads, self.K + self.P), self.kv_a_layernorm(latent), k_rope

    @region
    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, H, K+P], keys and values [B, T, H, K+V], k_rope [B, T, P]; nothing is turned yet."""
        q, latent, k_rope = self.latents(x)
        return q, self.keys_and_values(latent), k_rope

    @region
    def joined(self, q: Tensor, kv: Tensor, k_rope: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """What `projected` made, turned and joined; returns as `expanded`."""
        q_nope, q_rope = q.split((self.K, self.P), -1)
        if rotation is not None:
            q_rope, k_rope = _turned(q_rope, k_rope, rotation)
        return self.expanded(q_nope, q_rope, kv, k_rope)

    def fused(
        self,
        q: Tensor,
        kv: Tensor,
        k_rope: Tensor,
        rotation: Rotation | None,
        documents: Tensor | None,
        peaks: LogitPeaks | None,
    ) -> Tensor:
        """Turn, join and attend in one kernel, which sees every logit: `peaks` get the largest. -> [B, T, H, V]"""
        largest = None if peaks is None else peaks.max_logits
        return latent_attention(
            q, kv, k_rope, value_width=self.V, rotation=rotation, scale=self.scale, documents=documents, largest=largest
        )

    def keys_and_values(self, latent: Tensor) -> Tensor:
        """[B, S, R] -> [B, S, H, K+V]"""
        kv: Tensor = self.kv_b_proj(latent)
        return kv.view(*latent.shape[:2], self.heads, self.K + self.V)

    def expanded(self, q_nope: Tensor, q_rope: Tensor, kv: Tensor, k_rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of S tokens, joined: [B, H, T, K+P], [B, H, S, K+P] and [B, H, S, V]."""
        k_nope, v = kv.split((self.K, self.V), -1)
        q = torch.cat((q_nope, q_rope), -1).transpose(1, 2)
        k = torch.cat((k_nope, k_rope.unsqueeze(2).expand(-1, -1, self.heads, -1)), -1).transpose(1, 2)
        return q, k, v.transpose(1, 2)

    def absorbed(self, q_nope: Tensor, q_rope: Tensor, entries: Tensor, start: int | Tensor) -> Tensor:
        """Attend to the cached entries themselves. -> [B, T, H, V]"""
        B, T = q_nope.shape[:2]
        w = self.kv_b_proj.weight.to(q_nope.dtype).view(self.heads, self.K + self.V, self.R)
        w_k, w_v = w[:, : self.K], w[:, self.K :]  # (H, K, R), (H, V, R)
        q_nope = q_nope.reshape(B * T, self.heads, self.K).transpose(0, 1)  # (H, BT, K)
        q_latent = torch.bmm(q_nope, w_k).transpose(0, 1).view(B, T, self.heads, self.R)
        q = torch.cat((q_latent, q_rope), -1).transpose(1, 2)  # (B, H, T, R+P)
        shared = entries.unsqueeze(1)  # (B, 1, S, R+P): one key head, whose first R numbers are also the value
        u = attention(q, shared, shared[..., : self.R], scale=self.scale, start=start)  # (B, H, T, R)
        u = u.permute(1, 0, 2, 3).reshape(self.heads, B * T, self.R)
        out = torch.bmm(u, w_v.transpose(1, 2))  # (H, BT, V)
        return out.transpose(0, 1).reshape(B, T, self.heads, self.V)


def _turned(q_rope: Tensor, k_rope: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """Rotate q_rope [B, T, H, P] and k_rope [B, T, P]."""
    return rotate(q_rope, rotation), rotate(k_rope.unsqueeze(2), rotation).squeeze(2)
