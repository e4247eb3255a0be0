"""The alarm for a collapsed router: nearly every token goes to the same experts, and the others learn nothing.

A layer counts as collapsed in a step where one expert is chosen by more than nine tokens in ten (max/mean load over
0.9 E/A), or where more than half of its experts got no token at all. Once that has held for some steps on end it is
said, once; a layer that recovers may raise it anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moonlet.config.sections import OptimSettings

PATIENCE = 20  # steps on end
CROWD = 0.9  # the share of all tokens that go to one expert
DEAD = 0.5  # the share of experts without a token
# With fewer tokens an expert, some get none by chance: at 4 and even odds, one expert in 55.
LEAST_LOAD = 4


@dataclass(frozen=True)
class Collapse:
    """One layer's collapse: `crowd` is the share of tokens that chose the busiest expert, `dead` a count of experts."""

    router: int  # 0-indexed among the routers
    crowd: float
    even: float
    dead: int
    experts: int

    def describe(self, layer: int, settings: OptimSettings) -> str:
        """What happened in layer `layer`, in which numbers, and what to do: one line."""
        speed = f"raise optim.bias_update_speed (now {settings.bias_update_speed:g})"
        first = "set optim.balance=sign" if settings.balance == "off" else speed
        second = f"raise optim.aux_loss_alpha (now {settings.aux_loss_alpha:g})"
        return (
            f"the experts of layer {layer} have collapsed, {PATIENCE} steps in a row: {self.dead} of {self.experts} "
            f"get no token, the busiest is chosen by {self.crowd:.0%} of the tokens (even: {self.even:.0%}); {first}, "
            f"{second}, or lower optim.lr"
        )


def collapses(counters: list[int], loads: Sequence[Sequence[int]], active: int) -> list[Collapse]:
    """Count this step, and return the layers that have just been collapsed for `PATIENCE` steps.

    Args:
        counters: for each router the steps on end that it has been collapsed; filled at first, changed in place.
        loads: tokens each expert got, E a router.
        active: experts a token, A.
    """
    if len(counters) != len(loads):
        counters[:] = [0] * len(loads)
    found = []
    for i, row in enumerate(loads):
        collapse = _collapse(i, row, active)
        counters[i] = counters[i] + 1 if collapse else 0
        if collapse and counters[i] == PATIENCE:
            found.append(collapse)
    return found


def _collapse(router: int, row: Sequence[int], active: int) -> Collapse | None:
    experts, total = len(row), sum(row)
    # Where a token takes more than every second expert, some are taken by nearly all tokens in the best of orders.
    if 2 * active > experts or total < LEAST_LOAD * experts:
        return None
    crowd, dead = max(row) * active / total, row.count(0)
    if crowd <= CROWD and dead <= DEAD * experts:
        return None
    return Collapse(router, crowd, active / experts, dead, experts)
