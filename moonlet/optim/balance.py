"""Expert balance without an auxiliary loss (DeepSeek-V3, arXiv 2412.19437 section 2.1.2).

After a step, with c_j the tokens sent to expert j: b_j += u sign(mean(c) - c_j). The bias only chooses experts; it
gets no gradient and no decay. Loads are counted by the routers while training, over all of a step's micro-batches.
"""

from __future__ import annotations

import torch
from torch import nn

from moonlet.model.router import Router


@torch.no_grad()
def balance_step(model: nn.Module, speed: float) -> dict[str, float]:
    """Move every router's bias, clear the counts, and return what they said.

    Returns:
        `load_max`: the largest max/mean load of any layer (1 is perfect); `load_dead`: experts that got no token.
        Empty for a model without routers.
    """
    worst, dead, routers = 0.0, 0, 0
    for router in routers_of(model):
        load = router.load.float()
        routers += 1
        worst = max(worst, (load.max() / load.mean().clamp(min=1e-9)).item())
        dead += int((load == 0).sum())
        router.e_score_correction_bias += speed * torch.sign(load.mean() - load)
        router.load.zero_()
    return {"load_max": worst, "load_dead": float(dead)} if routers else {}


def clear_loads(model: nn.Module) -> None:
    """Forget the counts of a step that was not taken."""
    for router in routers_of(model):
        router.load.zero_()


def routers_of(model: nn.Module) -> list[Router]:
    """All routers, in the order of their layers."""
    return [module for module in model.modules() if isinstance(module, Router)]
