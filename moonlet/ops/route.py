"""Choosing experts (DeepSeek-V3, arXiv 2412.19437 section 2.1.2; Kimi-K2).

    s = sigmoid(W x)                       scores, fp32; or softmax(W x) over all experts
    chosen = top-A of s + b                the bias b chooses
    w = s[chosen] / sum s[chosen] * scale  and never weighs

With groups, only the `top_groups` groups with the largest sum of their two best s + b are searched. Of equal experts,
and of equal groups, the one with the lower index wins, on every device and in every run.

N tokens, D hidden size, E experts, A active experts a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.ops.dispatch import implementation, register
from moonlet.ops.native.call import DTYPES, kernel, native_fits


@dataclass(frozen=True)
class Rule:
    """How a router chooses: A `active` experts, in `top_groups` of `groups` groups, and what their weights sum to."""

    active: int
    groups: int = 1
    top_groups: int = 1
    softmax: bool = False
    normalise: bool = True
    scale: float = 1.0


def route(x: Tensor, matrix: Tensor, bias: Tensor, rule: Rule, load: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Choose each token's experts.

    Args:
        x: [N, D], any float dtype; the arithmetic is fp32.
        matrix: W [E, D].
        bias: b fp32 [E].
        load: int64 [E], to which the tokens that each expert got are added; None: they are not counted.

    Returns:
        Expert index int64 [N, A], best first, and weight fp32 [N, A]; the gradient reaches x and `matrix` through it.
    """
    choice = "native" if native_fits("route", x, matrix, bias) else "reference"
    return implementation("route", choice)(x, matrix, bias, rule, load)  # type: ignore[no-any-return]


@register("route", "reference")
def reference(x: Tensor, matrix: Tensor, bias: Tensor, rule: Rule, load: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The law, operation by operation."""
    return pick(scores(F.linear(x.float(), matrix.float()), rule), bias, rule, load)


def pick(s: Tensor, bias: Tensor, rule: Rule, load: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`route` from scores s fp32 [N, E] on."""
    index = choose(s.detach(), bias, rule)
    weight = s.gather(1, index)  # (N, A)
    if rule.normalise:
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
    if load is not None:
        load += torch.bincount(index.flatten(), minlength=load.shape[0])
    return index, weight * rule.scale


def scores(logits: Tensor, rule: Rule) -> Tensor:
    """How much each expert suits each token, from logits fp32 [N, E]: values in 0..1 of the same shape."""
    return logits.softmax(-1) if rule.softmax else logits.sigmoid()


def choose(s: Tensor, bias: Tensor, rule: Rule) -> Tensor:
    """Index of the A experts with the largest biased score, int64 [N, A], from s fp32 [N, E]."""
    choice = s + bias
    if rule.groups > 1:
        grouped = choice.unflatten(1, (rule.groups, -1))  # (N, groups, E/groups)
        best = _largest(grouped.topk(2, -1).values.sum(-1), rule.top_groups)  # (N, top_groups)
        open_ = torch.zeros(grouped.shape[:2], dtype=torch.bool, device=choice.device).scatter_(1, best, True)
        choice = grouped.masked_fill(~open_[..., None], float("-inf")).flatten(1)
    return _largest(choice, rule.active)


def _largest(values: Tensor, n: int) -> Tensor:
    """Index of the n largest of each row, best first; of equal ones the lower index. [N, E] -> int64 [N, n]"""
    # topk leaves open which of equal values it takes, and takes others on other devices; a stable sort does not, but
    # takes longer (five times, of 384 experts on a CPU). Equal values are rare; a GPU would have to wait to be asked,
    # and what is compiled cannot ask.
    if not (values.is_cuda or torch.compiler.is_compiling()):
        best, index = values.topk(min(n + 1, values.shape[1]), -1)
        if not (best[:, 1:] == best[:, :-1]).any():
            return index[:, :n].contiguous()
    return values.sort(dim=-1, descending=True, stable=True).indices[:, :n].contiguous()


@register("route", "native")
def native(x: Tensor, matrix: Tensor, bias: Tensor, rule: Rule, load: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One pass over the tokens in C++, and one for the gradient."""
    return _Native.apply(x, matrix, bias, rule, load)  # type: ignore[no-any-return,no-untyped-call]


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, matrix, bias, rule, load):  # type: ignore[no-untyped-def]
        x, w, b = x.contiguous(), matrix.float().contiguous(), bias.float().contiguous()
        (N, D), E = x.shape, len(w)
        s = torch.empty(N, E, dtype=torch.float32)
        index = torch.empty(N, rule.active, dtype=torch.int64)
        weight = torch.empty(N, rule.active, dtype=torch.float32)
        sizes = (N, D, E, rule.active, rule.groups, rule.top_groups, rule.softmax, rule.normalise)
        kernel("route", f"route_{DTYPES[x.dtype]}")(x, w, b, s, index, weight, load, *sizes, float(rule.scale))
        ctx.rule, ctx.dtype = rule, matrix.dtype
        ctx.save_for_backward(x, w, s, index)
        ctx.mark_non_differentiable(index)
        return index, weight

    @staticmethod
    def backward(ctx, _, d_weight):  # type: ignore[no-untyped-def]
        x, w, s, index = ctx.saved_tensors
        rule: Rule = ctx.rule
        d_weight = d_weight.float().contiguous()
        (N, D), E = x.shape, len(w)
        # As many sums as threads, added up afterwards in order: the same bits each time.
        parts = max(1, min(torch.get_num_threads(), N // 64))
        dx, dw = torch.empty_like(x), torch.zeros(parts, E, D, dtype=torch.float32)
        sizes = (N, D, parts, E, rule.active, rule.softmax, rule.normalise)
        backward = kernel("route", f"route_backward_{DTYPES[x.dtype]}")
        backward(x, w, s, index, d_weight, dx, dw, *sizes, float(rule.scale))
        return dx, dw.sum(0).to(ctx.dtype), None, None, None
