"""One step: gradients over the micro-batches, checks, and the change of the weights.

Nothing changes unless everything is finite: the loss and the gradient norm are looked at before the optimizer is.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moonlet.model.model import CausalLM
from moonlet.optim.balance import balance_step, clear_loads, sequence_loss
from moonlet.optim.optimizer import Optimizer
from moonlet.optim.qk_clip import clear_peaks, qk_clip, track_logits
from moonlet.train.casts import cast_once
from moonlet.train.compile import Compiler


@dataclass(frozen=True)
class StepResult:
    """What a step did. `problem` names what was not finite; the weights are then as they were.

    `loss` is the cross-entropy alone; `aux_loss`, what the experts' balance added to it, None where it is switched off.
    """

    loss: float
    grad_norm: float
    balance: dict[str, Any]
    problem: str | None = None
    aux_loss: float | None = None
    logits: dict[str, Any] = field(default_factory=dict)  # what `qk_clip` returned


def train_step(
    model: CausalLM,
    optimizer: Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    count: int,
    lr: float,
    grad_clip: float,
    bias_update_speed: float,
    zero_mean: bool = False,
    aux_loss_alpha: float = 0.0,
    bos_id: int | None = None,
    qk_clip_tau: float | None = None,
    every_logit: bool = False,
    compiler: Compiler | None = None,
) -> StepResult:
    """Take one optimizer step.

    Args:
        batches: `count` micro-batches of equal size, each inputs and targets int64 [B, T].
        lr: learning rate.
        grad_clip: largest global gradient norm; 0 switches clipping off.
        bias_update_speed, zero_mean: of the expert balance, see `balance_step`.
        aux_loss_alpha: weight of the sequence-level auxiliary loss, whose sequences are the rows; 0: off.
        bos_id: the token that begins a document; packed documents then do not see each other. None: they do.
        qk_clip_tau: heads whose attention logits exceed it are rescaled after the step; None: no clip.
        every_logit: report the exact largest logit of every head, with or without the clip.
        compiler: what compiles the regions of the layers; None: they run as they are written.
    """
    model.train()
    track_logits(model, qk_clip_tau, every_logit)
    total = torch.zeros((), device=model.device)
    aux_total: Tensor | None = None
    compiled = compiler.step() if compiler else nullcontext()
    with cast_once(model), compiled, sequence_loss(model, aux_loss_alpha) as take_aux:
        for inputs, targets in batches:
            documents = None if bos_id is None else (inputs == bos_id).cumsum(1)
            loss = model.loss(inputs, targets, documents) / count
            total += loss.detach()
            aux = take_aux()
            if aux is not None:
                aux = aux / count
                aux_total = aux.detach() if aux_total is None else aux_total + aux.detach()
                loss = loss + aux
            loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    value, size = total.item(), norm.item()
    if not (torch.isfinite(total) and torch.isfinite(norm)):
        problem = _culprit(model, value)
        optimizer.zero_grad()
        clear_loads(model)
        clear_peaks(model)
        return StepResult(value, size, {}, problem)
    if grad_clip and size > grad_clip:
        torch._foreach_mul_(gradients, grad_clip / size)
    optimizer.step(lr)
    optimizer.zero_grad()
    logits = qk_clip(model, qk_clip_tau)
    balance = balance_step(model, bias_update_speed, zero_mean)
    return StepResult(value, size, balance, aux_loss=None if aux_total is None else aux_total.item(), logits=logits)


def _culprit(model: nn.Module, loss: float) -> str:
    """Name the first thing that is not finite."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            what = "NaN" if torch.isnan(parameter.grad).any() else "infinity"
            return f"the gradient of {name} holds {what} (loss {loss})"
    return f"the loss is {loss}"
