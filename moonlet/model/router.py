"""Choosing experts (DeepSeek-V3, arXiv 2412.19437 section 2.1.2; Kimi-K2).

    s = sigmoid(W x)                       scores, fp32; or softmax(W x) over all experts
    chosen = top-A of s + b                b: e_score_correction_bias, moved by the balance step, never by a gradient
    w = s[chosen] / sum s[chosen] * scale  the bias chooses; it never weighs

With groups, only the `topk_group` groups with the largest sum of their two best s + b are searched. Softmax scores are
those of Kimi-Linear's published gate (moe_router_activation_func) and of DeepSeek-V2, whose bias is zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moonlet.config import ModelConfig


class Router(nn.Module):
    """`weight` [E, D]; buffers `e_score_correction_bias` fp32 [E] and `load` int64 [E], tokens sent while training."""

    e_score_correction_bias: Tensor
    load: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E = config.n_routed_experts
        self.active = config.num_experts_per_tok
        self.groups, self.top_groups = config.n_group, config.topk_group
        self.softmax = config.scoring_func == "softmax"
        self.normalise, self.scale = config.norm_topk_prob, config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(E, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(E, dtype=torch.float32))
        # Counted in training only, so that evaluation never moves the balance; the optimizer reads and clears it.
        self.register_buffer("load", torch.zeros(E, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, D] -> expert index int64 [N, A] and weight fp32 [N, A]; counts the load while training."""
        index, weight = self.route(x)
        if self.training:
            self.load += torch.bincount(index.flatten(), minlength=self.load.shape[0])
        return index, weight

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` without the count."""
        scores = self.scores(F.linear(x.float(), self.weight.float()))  # (N, E)
        index = self.choose(scores.detach())
        weight = scores.gather(1, index)  # (N, A)
        if self.normalise:
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        return index, weight * self.scale

    def scores(self, logits: Tensor) -> Tensor:
        """How much each expert suits each token, from logits fp32 [N, E]: values in 0..1 of the same shape."""
        return logits.softmax(-1) if self.softmax else logits.sigmoid()

    def choose(self, scores: Tensor) -> Tensor:
        """Index of the A experts with the largest biased score, int64 [N, A]."""
        choice = scores + self.e_score_correction_bias
        if self.groups > 1:
            grouped = choice.unflatten(1, (self.groups, -1))  # (N, groups, E/groups)
            best = grouped.topk(2, -1).values.sum(-1).topk(self.top_groups, -1).indices  # (N, top_groups)
            open_ = torch.zeros(grouped.shape[:2], dtype=torch.bool, device=choice.device).scatter_(1, best, True)
            choice = grouped.masked_fill(~open_[..., None], float("-inf")).flatten(1)
        return choice.topk(self.active, -1).indices
