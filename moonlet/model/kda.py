"""Kimi delta attention (Kimi Linear, arXiv 2510.26692): linear attention with a decay for each key channel.

    q = L2(SiLU(conv(x W_q))) a head,  k = L2(SiLU(conv(x W_k))),  v = SiLU(conv(x W_v))
    g = -exp(A_log) softplus(x W_fa W_fb + dt_bias)         logarithm of each key channel's decay, fp32
    beta = sigmoid(x W_b)                                   one a head, fp32
    o = delta rule of q K^-1/2, k, v, g, beta               ops/delta.py
    y = [ RMSNorm(o) sigmoid(x W_ga W_gb) ] W_o             the norm a head, its weight shared by all heads

Position is in the order of the recurrence itself; nothing is rotated. The cache is one matrix a head and the last
inputs of the convolutions, whatever the text's length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from moonlet.config import ModelConfig
from moonlet.model.cache import DeltaCache
from moonlet.model.linear import Linear
from moonlet.model.rope import Rotation
from moonlet.ops.delta import delta_rule
from moonlet.ops.gated_norm import gated_norm
from moonlet.ops.log_decay import log_decay
from moonlet.ops.region import region
from moonlet.ops.short_conv import last_inputs, short_conv


class ShortConv(nn.Module):
    """The filters of one projection: `weight` [channels, 1, taps], the last tap for the token itself."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, taps))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]} channels, {self.weight.shape[2]} taps"


class GatedNorm(nn.Module):
    """RMSNorm of each head times the sigmoid of its gate; `weight` [K] is every head's and starts at one."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, o: Tensor, gate: Tensor) -> Tensor:
        """[..., K] and a gate of the same shape -> the same shape, in o's dtype."""
        return gated_norm(o, gate, self.weight, self.eps)


class KDA(nn.Module):
    """Token mixing of Kimi Linear's other three layers in four. Parameter names are the checkpoint's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        linear = config.linear_attn_config
        assert linear is not None, "without sizes it is another attention"
        self.heads, self.K, self.taps = linear.num_heads, linear.head_dim, linear.short_conv_kernel_size
        D, width = config.hidden_size, linear.width
        self.q_proj, self.k_proj, self.v_proj = (Linear(D, width) for _ in range(3))
        self.q_conv1d, self.k_conv1d, self.v_conv1d = (ShortConv(width, self.taps) for _ in range(3))
        self.f_a_proj, self.f_b_proj = Linear(D, self.K), Linear(self.K, width)
        self.A_log = nn.Parameter(torch.empty(1, 1, self.heads, 1))
        self.dt_bias = nn.Parameter(torch.empty(width))
        self.b_proj = Linear(D, self.heads)
        self.g_a_proj, self.g_b_proj = Linear(D, self.K), Linear(self.K, width)
        self.o_norm = GatedNorm(self.K, config.rms_norm_eps)
        self.o_proj = Linear(width, D)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None = None,
        start: int | Tensor = 0,
        cache: DeltaCache | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Mix tokens.

        Args:
            x: [B, T, D], already normed.
            rotation: not used; other mixers are turned by it.
            start: tokens in the cache before these, int or int64 [B].
            cache: this layer's, or None to begin from nothing. What it then holds it holds once it is settled.
            documents: int64 [B, T]; each begins from nothing. Without a cache.

        Returns:
            [B, T, D]
        """
        B, T, _ = x.shape
        state, before = (None, None) if cache is None else cache.read(start)
        inputs = [self.q_proj(x), self.k_proj(x), self.v_proj(x)]  # (B, T, HK) each
        known = (None, None, None) if before is None else before.chunk(3, -1)
        q, k, v = self._convolved(inputs, known, documents)
        g = self._log_decay(x)
        beta = self.b_proj(x).to(g.dtype).sigmoid()  # (B, T, H)
        o, state = delta_rule(q, k, v, g, beta, state=state, documents=documents)
        if cache is not None:
            count = self.taps - 1
            last = [last_inputs(new, old, count) for new, old in zip(inputs, known, strict=True)]
            cache.put_aside(state, torch.cat(last, -1))
        gate = self.g_b_proj(self.g_a_proj(x)).view(B, T, self.heads, self.K)
        mixed: Tensor = self.o_proj(self.o_norm(o, gate).flatten(2))
        return mixed

    def _convolved(
        self, inputs: list[Tensor], known: Sequence[Tensor | None], documents: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys of length one, and values: [B, T, H, K] each; `known`: the inputs before each."""
        filters = (self.q_conv1d, self.k_conv1d, self.v_conv1d)
        widths = (self.K, self.K, None)  # values keep their length
        q, k, v = (
            short_conv(x, conv.weight, head_dim=width, before=old, documents=documents).unflatten(-1, (-1, self.K))
            for x, conv, width, old in zip(inputs, filters, widths, known, strict=True)
        )
        return q, k, v

    @region
    def _log_decay(self, x: Tensor) -> Tensor:
        """[B, T, H, K], fp32, at most 0."""
        return log_decay(self.f_b_proj(self.f_a_proj(x)), self.A_log, self.dt_bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KDA:
        """Move or cast the module; A_log and dt_bias stay fp32, as rates lie too close together for less.

        The decay over a long text is a product of a thousand factors, whose exponents bf16 would round to 1 in 256.
        """
        rates = {"A_log": self.A_log.data, "dt_bias": self.dt_bias.data}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, exact in rates.items():
            parameter = getattr(self, name)
            if parameter.dtype.itemsize < 4:
                parameter.data = exact.to(parameter.device, torch.float32)
        return self
