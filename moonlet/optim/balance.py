"""Expert balance without an auxiliary loss (DeepSeek-V3, arXiv 2412.19437 section 2.1.2).

After a step, with c_j the tokens sent to expert j: b_j += u sign(mean(c) - c_j). The bias only chooses experts; it
gets no gradient and no decay. Loads are counted by the routers while training, over all of a step's micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from moonlet.model.router import Router


@torch.no_grad()
def balance_step(model: nn.Module, speed: float) -> dict[str, Any]:
    """Move every router's bias, clear the counts, and return what they said.

    Returns:
        `load_max`: the largest max/mean load of any layer (1 is perfect); `load_dead`: experts that got no token;
        `loads`: the counts themselves, a list of E a router. Empty for a model without routers.
    """
    routers = routers_of(model)
    if not routers:
        return {}
    counts = torch.stack([router.load for router in routers])  # (L, E)
    load = counts.float()
    for router, row in zip(routers, load, strict=True):
        router.e_score_correction_bias += speed * torch.sign(row.mean() - row)
        router.load.zero_()
    # One transfer for all layers: each .item() would wait for the device.
    loads: list[list[int]] = counts.tolist()
    worst = max(max(row) * len(row) / max(1, sum(row)) for row in loads)
    return {"load_max": worst, "load_dead": float(sum(row.count(0) for row in loads)), "loads": loads}


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
        "entropy": [round(-sum(p * math.log(p) for p in row if p > 0), 5) for row in shares],
    }


def clear_loads(model: nn.Module) -> None:
    """Forget the counts of a step that was not taken."""
    for router in routers_of(model):
        router.load.zero_()


def routers_of(model: nn.Module) -> list[Router]:
    """All routers, in the order of their layers."""
    return [module for module in model.modules() if isinstance(module, Router)]
