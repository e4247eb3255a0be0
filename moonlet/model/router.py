"""The router of a mixture of experts; how it chooses is in `moonlet.ops.route`.

Its bias, `e_score_correction_bias`, is moved by the balance step, never by a gradient. Softmax scores are those of
Kimi-Linear's published gate (moe_router_activation_func) and of DeepSeek-V2, whose bias is zero.

Asked to, a router in training also says how unevenly each sequence uses its experts (eq. 17 to 20, without alpha):

    imbalance = sum_i f_i P_i,   f_i = E/(A T) #{t: i chosen},   P_i = mean_t s_i / sum_j s_j

It is 1 where all experts are used alike. f is a count, so the gradient reaches the scores through P alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moonlet.config import ModelConfig
from moonlet.ops.route import Rule, choose, pick, route, scores


class Router(nn.Module):
    """`weight` [E, D]; buffers `e_score_correction_bias` fp32 [E] and `load` int64 [E], tokens sent while training."""

    e_score_correction_bias: Tensor
    load: Tensor
    # Whether a training forward leaves its `imbalance`, an fp32 scalar with its gradient, for whoever trains to take.
    keeps_imbalance = False
    imbalance: Tensor | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E = config.n_routed_experts
        self.rule = Rule(
            active=config.num_experts_per_tok,
            groups=config.n_group,
            top_groups=config.topk_group,
            softmax=config.scoring_func == "softmax",
            normalise=config.norm_topk_prob,
            scale=config.routed_scaling_factor,
        )
        self.normalise, self.scale = self.rule.normalise, self.rule.scale
        self.weight = nn.Parameter(torch.empty(E, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(E, dtype=torch.float32))
        # Counted in training only, so that evaluation never moves the balance; the optimizer reads and clears it.
        self.register_buffer("load", torch.zeros(E, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor, rows: int = 1) -> tuple[Tensor, Tensor]:
        """Route, and while training count the load.

        Args:
            x: [N, D], the tokens of `rows` sequences of equal length, one sequence after the other.

        Returns:
            Expert index int64 [N, A], best first, and weight fp32 [N, A].
        """
        # Without gradients nothing is learnt from what is read: a validation or a rollout, whatever the mode.
        counted = self.training and torch.is_grad_enabled()
        load = self.load if counted else None
        if not (counted and self.keeps_imbalance):
            return route(x, self.weight, self.e_score_correction_bias, self.rule, load)
        s = self.scores(F.linear(x.float(), self.weight.float()))  # (N, E)
        index, weight = pick(s, self.e_score_correction_bias, self.rule, load)
        self.imbalance = sequence_imbalance(s, index, rows)
        return index, weight

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` without the count."""
        return route(x, self.weight, self.e_score_correction_bias, self.rule)

    def scores(self, logits: Tensor) -> Tensor:
        """How much each expert suits each token, from logits fp32 [N, E]: values in 0..1 of the same shape."""
        return scores(logits, self.rule)

    def choose(self, scores: Tensor) -> Tensor:
        """Index of the A experts with the largest biased score, int64 [N, A]."""
        return choose(scores, self.e_score_correction_bias, self.rule)


def sequence_imbalance(scores: Tensor, index: Tensor, rows: int) -> Tensor:
    """sum_i f_i P_i of each sequence, averaged over the sequences; fp32 scalar, 1 where all experts are used alike.

    Args:
        scores: fp32 [N, E], not negative; the gradient goes here.
        index: int64 [N, A] of the chosen experts.
        rows: the number of sequences, of N / rows tokens each.
    """
    E, A = scores.shape[1], index.shape[1]
    T = len(scores) // rows
    share = scores / (scores.sum(-1, keepdim=True) + 1e-20)
    P = share.view(rows, T, E).mean(1)  # (rows, E)
    chosen = index.view(rows, T * A)
    # Sums of ones are exact in any order.
    count = torch.zeros_like(P).scatter_add_(1, chosen, torch.ones_like(chosen, dtype=P.dtype))  # (rows, E)
    return (count * P).sum(-1).mean() * (E / (A * T))
