"""AdamW (arXiv 1711.05101) through torch's fused kernel, with its state named by parameter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from moonlet.config.recipe import OptimSettings
from moonlet.optim.groups import parameter_groups


class AdamW:
    """Over all trainable parameters but those named in `skip`."""

    _PARTS = ("exp_avg", "exp_avg_sq", "step")

    def __init__(self, model: nn.Module, settings: OptimSettings, skip: frozenset[str] = frozenset()) -> None:
        self._names: dict[Tensor, str] = {}
        groups = []
        for group in parameter_groups(model, settings.weight_decay).values():
            members = {name: p for name, p in group.parameters.items() if name not in skip}
            self._names |= {p: name for name, p in members.items()}
            if members:
                groups.append({"params": list(members.values()), "weight_decay": group.weight_decay})
        self._inner = torch.optim.AdamW(
            groups,
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
