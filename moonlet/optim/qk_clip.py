"""QK-Clip (Kimi K2, arXiv 2507.20534 section 2.1): no head's attention logits stay above tau.

After an optimizer step, for each layer and head h, with S_h its largest scaled logit over all of the step's
micro-batches and ranks:

    gamma_h = tau / S_h   where S_h > tau, else 1

    MLA   rows of q_nope and k_nope of head h times sqrt(gamma_h), rows of q_rope times gamma_h. The rotated key is
          shared by all heads and stays as it is, and so do the values
    GQA   key head g times s_g = max over its query heads of sqrt(gamma_h), query head h times gamma_h / s_g

Either way the head's logits on the same input become gamma_h times what they were, and a head with gamma_h = 1 keeps
its bits: a key head that it shares is not scaled. The logit is the one the softmax sees, YaRN's factor included.

The optimizer's momenta are left as they are when weights are rescaled, as published. Peaks live for one step and the
clip keeps nothing between steps, so a resumed run needs no state of it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moonlet.model.gqa import GQA
from moonlet.model.mla import MLA
from moonlet.model.model import CausalLM
from moonlet.model.peaks import LogitPeaks


def track_logits(model: CausalLM, tau: float | None, exact: bool = False) -> None:
    """Have every attention note its largest logits while training; called again, change how.

    Args:
        tau: heads whose bound exceeds it are computed exactly. None: no clip is wanted.
        exact: compute every head exactly, for logs and pictures. Without it and without tau nothing is tracked.
    """
    for attention in attentions_of(model).values():
        device = attention.o_proj.weight.device
        if tau is None and not exact:
            attention.peaks = None
            continue
        if attention.peaks is None or attention.peaks.max_logits.device != device:
            attention.peaks = LogitPeaks(attention.heads, device)
        attention.peaks.tau, attention.peaks.exact = math.inf if tau is None else tau, exact


@torch.no_grad()
def qk_clip(model: CausalLM, tau: float | None) -> dict[str, Any]:
    """Rescale the heads whose largest logit since the last call exceeds tau, and clear the peaks.

    With several ranks all must call it, as their maxima are joined (one all_reduce). Waits for the device once.

    Args:
        tau: positive; None: change nothing, and only say what the peaks were.

    Returns:
        `layers`: which layers have attention, L of them; `max_logits` [L][H]: what was computed exactly, and
        `logit_bound` [L][H]: the bound of what was not, minus infinity where there is none (model/peaks.py);
        `gamma` [L][H]. Empty where nothing is tracked.

    Raises:
        ValueError: tau is not a positive number.
    """
    if tau is not None and not 0 < tau < math.inf:
        raise ValueError(f"tau of QK-Clip is {tau}; it must be above 0 and finite")
    tracked = {layer: (a, a.peaks) for layer, a in attentions_of(model).items() if a.peaks is not None}
    if not tracked:
        return {}
    stacked = torch.stack([torch.stack((p.max_logits, p.logit_bound)) for _, p in tracked.values()])  # (L, 2, H)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(stacked, op=dist.ReduceOp.MAX)
    # One transfer for all layers: each .item() would wait for the device.
    known: list[list[list[float]]] = stacked.tolist()
    gammas = []
    for (attention, peaks), (largest, _) in zip(tracked.values(), known, strict=True):
        # A step that is taken has finite logits; infinity would make zeros of weights.
        gamma = [tau / s if tau is not None and tau < s < math.inf else 1.0 for s in largest]
        if min(gamma) < 1:
            factors = torch.tensor(gamma, dtype=torch.float64)
            _rescale_mla(attention, factors) if isinstance(attention, MLA) else _rescale_gqa(attention, factors)
        peaks.clear()
        gammas.append(gamma)
    return {
        "layers": list(tracked),
        "max_logits": [layer[0] for layer in known],
        "logit_bound": [layer[1] for layer in known],
        "gamma": gammas,
    }


def clear_peaks(model: CausalLM) -> None:
    """Forget the peaks of a step that was not taken."""
    for attention in attentions_of(model).values():
        if attention.peaks is not None:
            attention.peaks.clear()


def attentions_of(model: CausalLM) -> dict[int, MLA | GQA]:
    """The attention of each layer (0-indexed) that has one with logits."""
    mixers = {i: layer.self_attn for i, layer in enumerate(model.model.layers)}
    return {i: mixer for i, mixer in mixers.items() if isinstance(mixer, MLA | GQA)}


def summarise_logits(record: dict[str, Any]) -> dict[str, float]:
    """Of what `qk_clip` returned, the numbers that stand in the line of every step.

    Returns:
        `max_logit`: the largest of all heads; where it is only known not to exceed a bound, `max_logit_bound`
        instead. `clipped`: heads that were rescaled. Empty for an empty record.
    """
    if not record:
        return {}
    exact, bound = (max(map(max, record[name])) for name in ("max_logits", "logit_bound"))
    name, value = ("max_logit", exact) if exact >= bound else ("max_logit_bound", bound)
    clipped = sum(gamma < 1 for row in record["gamma"] for gamma in row)
    return {name: value, "clipped": clipped} if math.isfinite(value) else {"clipped": clipped}


def describe_logits(record: dict[str, Any]) -> dict[str, list[Any]]:
    """What `qk_clip` returned as plain numbers for metrics.jsonl, a list a layer.

    Returns:
        `layers`; `max_logits`: of each head, None where it is not known exactly; `logit_bound`: of those, what they
        do not exceed, None elsewhere; `gamma`: of each head; `clipped`: number of heads rescaled.
    """
    exact, bounds = [], []
    for row in zip(record["max_logits"], record["logit_bound"], strict=True):
        pairs = list(zip(*row, strict=True))
        exact.append([round(s, 4) if s >= b and math.isfinite(s) else None for s, b in pairs])
        bounds.append([round(b, 4) if s < b < math.inf else None for s, b in pairs])
    return {
        "layers": record["layers"],
        "max_logits": exact,
        "logit_bound": bounds,
        "gamma": [[round(gamma, 6) for gamma in row] for row in record["gamma"]],
        "clipped": [sum(gamma < 1 for gamma in row) for row in record["gamma"]],
    }


def _rescale_mla(attention: MLA, gamma: Tensor) -> None:
    """gamma: fp64 [H]."""
    query = attention.q_b_proj if attention.query_is_low_rank else attention.q_proj
    K, P = attention.K, attention.P
    root = gamma.sqrt()[:, None].expand(-1, K)
    values = gamma.new_ones(len(gamma), attention.V)
    _scale_rows(query.weight, torch.cat((root, gamma[:, None].expand(-1, P)), 1))  # rows [q_nope | q_rope] a head
    _scale_rows(attention.kv_b_proj.weight, torch.cat((root, values), 1))  # rows [k_nope | v] a head


def _rescale_gqa(attention: GQA, gamma: Tensor) -> None:
    """gamma: fp64 [H]."""
    shared = gamma.sqrt().view(attention.groups, -1).amax(1)  # (G,)
    of_query = gamma / shared.repeat_interleave(attention.heads // attention.groups)
    _scale_rows(attention.q_proj.weight, of_query[:, None].expand(-1, attention.K))
    _scale_rows(attention.k_proj.weight, shared[:, None].expand(-1, attention.K))


def _scale_rows(weight: Tensor, factors: Tensor) -> None:
    """Multiply each row of `weight` [rows, in] by its factor; one of exactly 1 keeps the row's bits."""
    weight.mul_(factors.reshape(-1, 1).to(weight.device, weight.dtype))
