"""Mixture of experts: y = sum_a w_a expert_a(x) + shared(x)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moonlet.config import ModelConfig
from moonlet.model.ffn import SwiGLU
from moonlet.model.router import Router
from moonlet.ops.experts import experts


class Experts(nn.Module):
    """All routed experts, stacked: `gate_up_proj` [E, 2I, D] (gate first) and `down_proj` [E, D, I].

    On disk every expert has three matrices of its own; `hub` splits and joins them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, D, I = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * I, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, I))

    def forward(self, x: Tensor, index: Tensor, weight: Tensor, plus: Tensor | None = None) -> Tensor:
        """x [N, D], index int64 [N, A], weight fp32 [N, A], plus [N, D] to be added or None -> [N, D]"""
        return experts(x, self.gate_up_proj, self.down_proj, index, weight, plus)

    def extra_repr(self) -> str:
        E, D, I = self.down_proj.shape
        return f"{E} experts, {D} -> {I} -> {D}"


class MoE(nn.Module):
    """Router, routed experts, and the shared experts every token passes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        if config.n_shared_experts:
            self.shared_experts = SwiGLU(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)
        self.has_shared = bool(config.n_shared_experts)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]"""
        flat = x.flatten(0, 1)  # (N, D)
        index, weight = self.gate(flat, len(x))
        shared = self.shared_experts(flat) if self.has_shared else None
        y: Tensor = self.experts(flat, index, weight, shared)
        return y.view_as(x)
