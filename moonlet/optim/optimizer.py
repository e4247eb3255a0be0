"""The seam between the training loop and whatever changes the weights.

The loop knows three things of an optimizer: step at a rate, clear gradients, and its state as named tensors. A second
optimizer is a class with these methods and one more line in `build_optimizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from moonlet.config.recipe import OptimSettings
from moonlet.optim.groups import parameter_groups


class Optimizer(Protocol):
    """What the loop needs."""

    def step(self, lr: float) -> None:
        """Change the weights by their gradients, at learning rate `lr`."""
        ...

    def zero_grad(self) -> None:
        """Drop all gradients."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that must be kept for an exact resume, as flat named tensors."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned; raises ValueError when it is another model's."""
        ...


def build_optimizer(model: nn.Module, settings: OptimSettings) -> Optimizer:
    """The optimizer that `settings.kind` names, over `model`'s trainable parameters."""
    kinds = {"adamw": AdamW}
    return kinds[settings.kind](model, settings)


class AdamW:
    """AdamW (arXiv 1711.05101) through torch's fused kernel, with state named by parameter."""

    _PARTS = ("exp_avg", "exp_avg_sq", "step")

    def __init__(self, model: nn.Module, settings: OptimSettings) -> None:
        groups = parameter_groups(model, settings.weight_decay)
        self._names: dict[Tensor, str] = {p: name for group in groups for name, p in group.parameters.items()}
        self._inner = torch.optim.AdamW(
            [{"params": list(g.parameters.values()), "weight_decay": g.weight_decay} for g in groups if g.parameters],
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            fused=True,
        )

    def step(self, lr: float) -> None:
        """One update."""
        for group in self._inner.param_groups:
            group["lr"] = lr
        self._inner.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self._inner.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """`NAME.exp_avg`, `NAME.exp_avg_sq` (shape of the parameter) and `NAME.step` (fp32 scalar); empty at first."""
        return {
            f"{self._names[p]}.{part}": values[part] for p, values in self._inner.state.items() for part in self._PARTS
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
        wanted = {f"{name}.{part}" for name in self._names.values() for part in self._PARTS}
        if tensors and set(tensors) != wanted:
            odd = sorted(set(tensors) ^ wanted)[0]
            raise ValueError(f"the optimizer state does not fit this model: {odd} is on one side only")
        if not tensors:
            return
        for p, name in self._names.items():
            self._inner.state[p] = {
                part: tensors[f"{name}.{part}"].to(p.device, torch.float32).clone() for part in self._PARTS
            }
