"""The seam between the training loop and whatever changes the weights.

The loop knows three things of an optimizer: step at a rate, clear gradients, and its state as named tensors. Another
optimizer is a class with these methods and one more line in `build_optimizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from moonlet.config.sections import OptimSettings
from moonlet.optim.adamw import AdamW
from moonlet.optim.muon import Muon


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
    # What "muonclip" adds, QK-Clip, comes after the optimizer and after any: see qk_clip.py.
    return AdamW(model, settings) if settings.kind == "adamw" else Muon(model, settings)
