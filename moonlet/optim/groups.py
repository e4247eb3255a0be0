"""Which parameters are treated alike.

Matrices decay; norm gains, which start at one and must not be pulled to zero in a model this small, do not. Every
optimizer of this room starts from these groups, so a parameter is named in one place only.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Group:
    """Parameters treated alike, in the model's order."""

    name: str
    parameters: dict[str, nn.Parameter]
    weight_decay: float


def parameter_groups(model: nn.Module, weight_decay: float) -> dict[str, Group]:
    """Split the trainable parameters of `model` into matrices (expert stacks included) and vectors."""
    matrices: dict[str, nn.Parameter] = {}
    vectors: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (matrices if parameter.dim() > 1 else vectors)[name] = parameter
    groups = (Group("matrices", matrices, weight_decay), Group("vectors", vectors, 0.0))
    return {group.name: group for group in groups}
