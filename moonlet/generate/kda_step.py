"""One token a row through Kimi delta attention: what model/kda.py computes, in few operations and in place.

All that is read from x is one product. The state and the convolutions' inputs change where they lie, so that a step
costs the same after any number of tokens. Unlike a forward of the model, a step that is broken off half way has changed
the states of the layers it went through.

B rows, D hidden size, H heads, K width of a head, W taps.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.model.cache import DeltaCache
from moonlet.model.kda import KDA
from moonlet.ops.delta import delta_step
from moonlet.ops.short_conv import L2_EPS


class KDAStep:
    """A layer's step. Holds a copy of the matrices that read x, next to each other."""

    def __init__(self, kda: KDA, dtype: torch.dtype) -> None:
        self.H, self.K = kda.heads, kda.K
        width = self.H * self.K
        readers = (kda.q_proj, kda.k_proj, kda.v_proj, kda.f_a_proj, kda.g_a_proj, kda.b_proj)
        self.read = torch.cat([m.weight.detach().to(dtype).t() for m in readers], 1)  # (D, 3HK + 2K + H)
        self.sizes = (3 * width, self.K, self.K, self.H)
        filters = (kda.q_conv1d, kda.k_conv1d, kda.v_conv1d)
        self.taps = torch.cat([f.weight.detach().float()[:, 0] for f in filters]).t().contiguous()  # (W, 3HK)
        self.f_b, self.g_b, self.o = (m.weight.detach().to(dtype).t() for m in (kda.f_b_proj, kda.g_b_proj, kda.o_proj))
        self.rate = -kda.A_log.detach().float().exp().view(self.H, 1)
        self.dt_bias = kda.dt_bias.detach().float()
        self.norm = kda.o_norm.weight.detach().float() * math.sqrt(self.K)
        self.l2_floor, self.norm_floor = (
            torch.tensor(math.sqrt(square), device=self.norm.device) for square in (L2_EPS, self.K * kda.o_norm.eps)
        )

    def __call__(self, x: Tensor, cache: DeltaCache, empty: Tensor | None) -> Tensor:
        """x [B, D] -> [B, D]

        Args:
            empty: bool [B], rows that hold no token yet, whose memory may hold anything; None: there are none.
        """
        B, H, K = x.shape[0], self.H, self.K
        if empty is not None:
            cache.state.masked_fill_(empty[:, None, None, None], 0.0)
            cache.inputs.masked_fill_(empty[:, None, None], 0.0)
        new, f, gate, beta = torch.mm(x, self.read).split(self.sizes, -1)
        seen = torch.cat((cache.inputs, new[:, None]), 1)  # (B, W, 3HK)
        cache.inputs.copy_(seen[:, 1:])
        y = F.silu((seen * self.taps).sum(1), inplace=True).view(B, 3, H, K)  # fp32
        qk = y[:, :2]
        qk /= _length(qk, self.l2_floor)
        q, k, v = y.to(x.dtype).unbind(1)  # (B, H, K) each
        g = F.softplus(torch.mm(f, self.f_b) + self.dt_bias).view(B, H, K).mul_(self.rate)
        o = delta_step(q, k, v, g, beta.float().sigmoid_(), cache.state).float()
        # RMSNorm with the width moved into floor and weight, as in step.py.
        o = (o / _length(o, self.norm_floor)).mul_(self.norm)
        o *= torch.mm(gate, self.g_b).float().sigmoid_().view(B, H, K)
        return torch.mm(o.view(B, H * K).to(x.dtype), self.o)


def _length(x: Tensor, floor: Tensor) -> Tensor:
    """sqrt(sum x^2 + floor^2) over the last axis, which stays."""
    length: Tensor = torch.linalg.vector_norm(x, 2, -1, True)
    return length.hypot_(floor)
