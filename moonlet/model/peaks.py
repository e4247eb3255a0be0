"""The largest logits of one attention since they were last looked at.

QK-Clip needs to know which heads' logits exceed tau, and by how much. For each forward a bound from the norms of q and
k comes first; a head that it leaves below tau needs no more, and only the others' exact maximum is computed. So of each
head one knows

    max_logits    the largest exact maximum               minus infinity where none was computed
    logit_bound   the largest bound that was left at that minus infinity where every forward was computed exactly

An attention whose kernel sees every logit anyway raises `max_logits` itself, exactly, and has no use for the bound. A
head's largest logit is max_logits where that is not below logit_bound, and lies between the two elsewhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moonlet.ops.max_logit import logit_bound, max_logit


class LogitPeaks:
    """What an attention keeps while its logits are tracked: `max_logits` and `logit_bound`, each fp32 [H].

    No buffers of the module: a model's file, its casts, and whoever copies buffers between processes pass them over.

    Args:
        heads: H.
        tau: heads whose bound exceeds it are computed exactly; infinity: none.
        exact: compute the other heads exactly too, in place of their bound.
    """

    def __init__(self, heads: int, device: torch.device, tau: float = math.inf, exact: bool = False) -> None:
        self.tau, self.exact = tau, exact
        self.max_logits = torch.full((heads,), -math.inf, device=device)
        self.logit_bound = torch.full((heads,), -math.inf, device=device)

    @torch.no_grad()
    def see(self, q: Tensor, k: Tensor, scale: float, start: int | Tensor, documents: Tensor | None) -> None:
        """Take in one forward; arguments as in `ops.max_logit`. Waits for the device once, twice with `exact`."""
        bound = logit_bound(q, k, scale)
        beyond = ~(bound <= self.tau)  # so put, NaN is beyond
        # The heads beyond by themselves in either case: what is logged must not change how a clipped head's rounds.
        for chosen in (beyond, ~beyond) if self.exact else (beyond,):
            heads = chosen.nonzero()[:, 0]
            if len(heads):
                found = max_logit(q, k, scale=scale, start=start, documents=documents, heads=heads)
                self.max_logits = torch.maximum(self.max_logits, found)
        if not self.exact:
            self.logit_bound = torch.maximum(self.logit_bound, bound.masked_fill(beyond, -math.inf))

    def clear(self) -> None:
        """Forget all."""
        self.max_logits.fill_(-math.inf)
        self.logit_bound.fill_(-math.inf)
