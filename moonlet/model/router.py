"""Choosing experts (DeepSeek-V3, arXiv 2412.19437 section 2.1.2; Kimi-K2).

    s = sigmoid(W x)                       scores, fp32; or softmax(W x) over all experts
    chosen = top-A of s + b                b: e_score_correction_bias, moved by the balance step, never by a gradient
    w = s[chosen] / sum s[chosen] * scale  the bias chooses; it never weighs

With groups, only the `topk_group` groups with the largest sum of their two best s + b are searched. Of equal experts,
and of equal groups, the one with the lower index wins, on every device and in every run. Softmax scores are those of
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
        self.active = config.num_experts_per_tok
        self.groups, self.top_groups = config.n_group, config.topk_group
        self.softmax = config.scoring_func == "softmax"
        self.normalise, self.scale = config.norm_topk_prob, config.routed_scaling_factor
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
        scores = self._scores_of(x)
        index, weight = self._pick(scores)
        # Without gradients nothing is learnt from what is read: a validation or a rollout, whatever the mode.
        if self.training and torch.is_grad_enabled():
            self.load += torch.bincount(index.flatten(), minlength=self.load.shape[0])
            if self.keeps_imbalance:
                self.imbalance = sequence_imbalance(scores, index, rows)
        return index, weight

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` without the count."""
        return self._pick(self._scores_of(x))

    def _scores_of(self, x: Tensor) -> Tensor:
        return self.scores(F.linear(x.float(), self.weight.float()))  # (N, E)

    def _pick(self, scores: Tensor) -> tuple[Tensor, Tensor]:
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
            best = _largest(grouped.topk(2, -1).values.sum(-1), self.top_groups)  # (N, top_groups)
            open_ = torch.zeros(grouped.shape[:2], dtype=torch.bool, device=choice.device).scatter_(1, best, True)
            choice = grouped.masked_fill(~open_[..., None], float("-inf")).flatten(1)
        return _largest(choice, self.active)


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


def _largest(values: Tensor, n: int) -> Tensor:
    """Index of the n largest of each row, best first; of equal ones the lower index. [N, E] -> int64 [N, n]"""
    # topk leaves open which of equal values it takes, and takes others on other devices; a stable sort does not, but
    # takes longer (five times, of 384 experts on a CPU). Equal values are rare; a GPU would have to wait to be asked.
    if not values.is_cuda:
        best, index = values.topk(min(n + 1, values.shape[1]), -1)
        if not (best[:, 1:] == best[:, :-1]).any():
            return index[:, :n].contiguous()
    return values.sort(dim=-1, descending=True, stable=True).indices[:, :n].contiguous()
