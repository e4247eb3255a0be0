"""Keeping every expert at work: the bias of the choice, and the sequence-level auxiliary loss.

After a step, with c_j the tokens sent to expert j and e_j = mean(c) - c_j:

    sign       b_j += u sign(e_j)                        DeepSeek-V3, arXiv 2412.19437 section 2.1.2
    zero-mean  b_j += u (sign(e_j) - mean_i sign(e_i))   Moonlight, arXiv 2502.16982 appendix: mean(b) stays as it is

The bias only chooses experts; it gets no gradient and no decay. Loads are counted by the routers while training, over
all micro-batches of a step, and here over all ranks. The auxiliary loss alpha * sum over layers of
`moonlet.model.router.sequence_imbalance` weighs against a single sequence whose tokens crowd the same experts, which
the bias, moved by whole batches, does not see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moonlet.config.sections import OptimSettings
from moonlet.model.router import Router


def bias_speed(settings: OptimSettings, step: int, total: int | None) -> float:
    """u of step `step` (0-indexed): 0 where the balance is off, and in the part of the run where it is frozen.

    Args:
        total: steps of the whole run; None while a time budget has not fixed it yet.
    """
    frozen = total is not None and step >= total - round(total * settings.bias_freeze_fraction)
    return 0.0 if settings.balance == "off" or frozen else settings.bias_update_speed


@torch.no_grad()
def balance_step(model: nn.Module, speed: float, zero_mean: bool = False) -> dict[str, Any]:
    """Move every router's bias, clear the counts, and return what they said.

    With several ranks the counts are summed over all of them, which therefore all must call this.

    Args:
        speed: u; 0 leaves the bias as it is.
        zero_mean: Moonlight's form of the step.

    Returns:
        `load_max`: the largest max/mean load of any layer (1 is perfect); `load_dead`: experts that got no token;
        `load_entropy`: the smallest entropy of any layer's shares over its largest possible, ln E (1 is perfect);
        `loads`: the counts themselves, a list of E a router. Empty for a model without routers.
    """
    routers = routers_of(model)
    if not routers:
        return {}
    counts = torch.stack([router.load for router in routers])  # (L, E)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    if speed:
        move = bias_move(counts, zero_mean) * speed  # (L, E)
        torch._foreach_add_([router.e_score_correction_bias for router in routers], list(move.unbind()))
    clear_loads(model)
    # One transfer for all layers: each .item() would wait for the device.
    loads: list[list[int]] = counts.tolist()
    return {
        "load_max": max(max(row) * len(row) / max(1, sum(row)) for row in loads),
        "load_dead": float(sum(row.count(0) for row in loads)),
        "load_entropy": min(_entropy(row) / math.log(len(row)) if len(row) > 1 else 1.0 for row in loads),
        "loads": loads,
    }


def bias_move(counts: Tensor, zero_mean: bool) -> Tensor:
    """The step of the bias at u = 1. Counts int64 [L, E] -> fp32 [L, E]"""
    # In whole numbers, E times the difference: a rounded mean would move the experts that sit exactly on it.
    move = (counts.sum(-1, keepdim=True) - counts.shape[-1] * counts).sign().float()
    return move - move.mean(-1, keepdim=True) if zero_mean else move


@contextmanager
def sequence_loss(model: nn.Module, alpha: float) -> Iterator[Callable[[], Tensor | None]]:
    """The auxiliary loss of training forwards inside the block.

    Args:
        alpha: its weight; at 0 nothing is computed.

    Yields:
        A function to call after each forward: alpha times the sum over layers of that forward's imbalance, an fp32
        scalar with its gradient, to be added to the loss. None where alpha is 0 or nothing was routed.
    """
    routers = routers_of(model) if alpha else []

    def take() -> Tensor | None:
        found = [router.imbalance for router in routers if router.imbalance is not None]
        for router in routers:
            router.imbalance = None
        return alpha * torch.stack(found).sum() if found else None

    for router in routers:
        router.keeps_imbalance = True
    try:
        yield take
    finally:
        for router in routers:
            # A scalar that nobody took would keep the whole graph behind it alive.
            router.keeps_imbalance, router.imbalance = False, None


def describe_loads(loads: Sequence[Sequence[int]]) -> dict[str, list[Any]]:
    """What the counts of a step say about each layer, in plain numbers for metrics.jsonl.

    Args:
        loads: tokens each expert got, E a layer.

    Returns:
        `load`: each expert's share of its layer's tokens; `max_over_mean`: 1 is perfect, E the worst;
        `entropy`: of the shares, in nats; ln E is perfect, 0 the worst.
    """
    shares = [[count / max(1, sum(row)) for count in row] for row in loads]
    return {
        "load": [[round(share, 5) for share in row] for row in shares],
        "max_over_mean": [round(max(row) * len(row), 4) for row in shares],
        "entropy": [round(_entropy(row), 5) for row in loads],
    }


def clear_loads(model: nn.Module) -> None:
    """Forget the counts of a step that was not taken."""
    loads = [router.load for router in routers_of(model)]
    if loads:
        torch._foreach_zero_(loads)


def routers_of(model: nn.Module) -> list[Router]:
    """All routers, in the order of their layers."""
    return [module for module in model.modules() if isinstance(module, Router)]


def _entropy(row: Sequence[int]) -> float:
    """Entropy of the shares of one layer's counts, in nats; 0 where nothing was counted."""
    total = max(1, sum(row))
    return sum(count / total * math.log(total / count) for count in row if count)
