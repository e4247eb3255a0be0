"""Muon for matrices, AdamW for the rest (Moonlight, arXiv 2502.16982 section 2.2).

    M = mu M + G;   O = NewtonSchulz(G + mu M);   W = W - lr (0.2 sqrt(max(rows, columns)) O + decay W)

The factor 0.2 sqrt(max) gives an update the size of AdamW's, so that one learning rate and one weight decay serve
both. Every expert's matrices are orthogonalised by themselves, gate and up apart. Embedding, head and norms are
AdamW's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from moonlet.config.recipe import OptimSettings
from moonlet.ops.newton_schulz import newton_schulz
from moonlet.optim.adamw import AdamW
from moonlet.optim.groups import parameter_groups

MOMENTUM = 0.95
_BUFFER = "momentum"


class Muon:
    """One optimizer over all trainable parameters, one state."""

    def __init__(self, model: nn.Module, settings: OptimSettings) -> None:
        groups = parameter_groups(model, settings.weight_decay)
        self._matrices = {n: p for n, p in groups["matrices"].parameters.items() if not _is_vocabulary(n)}
        self._weight_decay = settings.weight_decay
        self._momentum: dict[str, Tensor] = {}
        self._adamw = AdamW(model, settings, skip=frozenset(self._matrices))

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update of everything that has a gradient."""
        self._adamw.step(lr)
        # Matrices of one shape are orthogonalised together: a model has few shapes and many matrices.
        by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
        for name, p in self._matrices.items():
            if p.grad is None:
                continue
            momentum = self._momentum.setdefault(name, torch.zeros_like(p))
            momentum.mul_(MOMENTUM).add_(p.grad)
            pieces = _pieces(name, torch.add(p.grad, momentum, alpha=MOMENTUM))  # (n, rows, columns)
            by_shape.setdefault((pieces.shape[1], pieces.shape[2]), []).append((p, pieces))
        for shape, members in by_shape.items():
            updates = newton_schulz(torch.cat([pieces for _, pieces in members]))
            size = 0.2 * math.sqrt(max(shape))
            counts = [len(pieces) for _, pieces in members]
            for (p, _), update in zip(members, updates.split(counts), strict=True):
                p.mul_(1 - lr * self._weight_decay).add_(update.reshape(p.shape), alpha=-lr * size)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self._adamw.zero_grad()
        for p in self._matrices.values():
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """`NAME.momentum` in the parameter's shape, and AdamW's tensors for the rest; empty at first."""
        return {f"{name}.{_BUFFER}": m for name, m in self._momentum.items()} | self._adamw.state()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned; raises ValueError when it is another model's."""
        suffix = f".{_BUFFER}"
        mine = {name.removesuffix(suffix): t for name, t in tensors.items() if name.endswith(suffix)}
        self._adamw.load_state({name: t for name, t in tensors.items() if not name.endswith(suffix)})
        odd = sorted(set(mine) ^ set(self._matrices))
        if mine and odd:
            raise ValueError(f"the optimizer state does not fit this model: {odd[0]} is on one side only")
        self._momentum = {name: t.to(self._matrices[name].device, torch.float32).clone() for name, t in mine.items()}


def _is_vocabulary(name: str) -> bool:
    """Embedding and head: their rows are words, not a map between spaces."""
    return name.endswith(("embed_tokens.weight", "lm_head.weight"))


def _pieces(name: str, gradient: Tensor) -> Tensor:
    """The matrices inside one parameter: [n, rows, columns]."""
    if name.endswith("gate_up_proj"):
        E, rows, columns = gradient.shape
        return gradient.reshape(2 * E, rows // 2, columns)
    return gradient.reshape(-1, *gradient.shape[-2:])
