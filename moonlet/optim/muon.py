"""Muon for matrices, AdamW for the rest (Moonlight, arXiv 2502.16982 section 2.2).

    M = mu M + G;   O = NewtonSchulz(G + mu M);   W = W - lr (0.2 sqrt(max(rows, columns)) O + decay W)

The factor 0.2 sqrt(max) gives an update the size of AdamW's, so that one learning rate and one weight decay serve
both. Every matrix is orthogonalised by itself (optim/blocks.py says what is one), and all of one shape together, across
experts and layers. Which parameters are matrices says optim/groups.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from moonlet.config.sections import OptimSettings
from moonlet.ops.momentum import look_ahead, move
from moonlet.ops.newton_schulz import chunk, newton_schulz
from moonlet.optim.adamw import AdamW, check_state
from moonlet.optim.blocks import cuts, stack
from moonlet.optim.groups import parameter_groups

_BUFFER = "momentum"

# Views of a parameter, its momentum and its gradient, each [n, rows, columns].
_Part = tuple[Tensor, Tensor, Tensor]


class Muon:
    """One optimizer over all trainable parameters, one state.

    A parameter without a gradient is left alone: no decay, and its momentum waits.
    """

    def __init__(self, model: nn.Module, settings: OptimSettings) -> None:
        group = parameter_groups(model, settings)["matrices"]
        self._model = model
        self._matrices, self._weight_decay = group.parameters, group.weight_decay
        self._mu, self._steps = settings.momentum, settings.ns_steps
        self._cuts = cuts(model, settings.muon_per_head)
        self._momentum: dict[str, Tensor] = {}
        self._adamw = AdamW(model, settings, skip=frozenset(self._matrices))

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update of everything that has a gradient."""
        self._adamw.step(lr)
        # The products follow the model's compute dtype, which was chosen for this machine or asked for.
        dtype = getattr(self._model, "compute_dtype", None)
        for parts in self._by_shape().values():
            for some in _chunks(parts):
                self._update(some, lr, dtype)

    def _by_shape(self) -> dict[tuple[int, ...], list[_Part]]:
        """All that has a gradient, by the shape of its matrices: a model has few shapes and many matrices."""
        found: dict[tuple[int, ...], list[_Part]] = {}
        for name, p in self._matrices.items():
            if p.grad is None:
                continue
            if name not in self._momentum:
                self._momentum[name] = torch.zeros_like(p, dtype=torch.float32, memory_format=torch.contiguous_format)
            cut = self._cuts.get(name, stack)
            for part in zip(cut(p), cut(self._momentum[name]), cut(p.grad.contiguous()), strict=True):
                found.setdefault(part[0].shape[1:], []).append(part)
        return found

    def _update(self, parts: list[_Part], lr: float, dtype: torch.dtype | None) -> None:
        """Momentum, orthogonalisation and decay of matrices of one shape, few enough to stay near the processor."""
        weights, momenta, gradients = ([part[i] for part in parts] for i in range(3))
        ahead = look_ahead(momenta, gradients, self._mu)  # (n, rows, columns)
        updates = newton_schulz(ahead, self._steps, dtype)
        size = 0.2 * math.sqrt(max(ahead.shape[1:]))
        move(weights, updates, 1 - lr * self._weight_decay, lr * size)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self._adamw.zero_grad()
        for p in self._matrices.values():
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """`NAME.momentum` in the parameter's shape, fp32, and AdamW's tensors for the rest; empty at first."""
        momentum = {}
        if self._momentum:
            momentum = {
                f"{name}.{_BUFFER}": self._momentum[name] if name in self._momentum else torch.zeros_like(p)
                for name, p in self._matrices.items()
            }
        return momentum | self._adamw.state()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned; raises ValueError when it is another model's."""
        suffix = f".{_BUFFER}"
        mine = {name: t for name, t in tensors.items() if name.endswith(suffix)}
        if mine:
            check_state(mine, {f"{name}{suffix}": p.shape for name, p in self._matrices.items()})
        self._adamw.load_state({name: t for name, t in tensors.items() if not name.endswith(suffix)})
        self._momentum = {
            name: mine[f"{name}{suffix}"].to(p.device, torch.float32, copy=True).contiguous()
            for name, p in self._matrices.items()
            if mine
        }


def _chunks(parts: list[_Part]) -> Iterator[list[_Part]]:
    """Cut `parts`, and parts that are larger, into lists of as many matrices as are best worked on at once."""
    _, rows, columns = parts[0][0].shape
    size = chunk(rows, columns, parts[0][0].device)
    some: list[_Part] = []
    room = size
    for weight, momentum, gradient in parts:
        begin = 0
        while begin < len(weight):
            end = min(len(weight), begin + room)
            some.append((weight[begin:end], momentum[begin:end], gradient[begin:end]))
            room -= end - begin
            begin = end
            if not room:
                yield some
                some, room = [], size
    if some:
        yield some
