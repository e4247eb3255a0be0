"""AdamW (arXiv 1711.05101) through torch's fused kernel, with its state named by parameter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from moonlet.config.sections import OptimSettings
from moonlet.optim.groups import parameter_groups


class AdamW:
    """Over all trainable parameters but those named in `skip`."""

    _PARTS = ("exp_avg", "exp_avg_sq", "step")

    def __init__(self, model: nn.Module, settings: OptimSettings, skip: frozenset[str] = frozenset()) -> None:
        self._names: dict[Tensor, str] = {}
        groups = []
        for group in parameter_groups(model, settings).values():
            members = {name: p for name, p in group.parameters.items() if name not in skip}
            self._names |= {p: name for name, p in members.items()}
            if members:
                groups.append({"params": list(members.values()), "weight_decay": group.weight_decay})
        self._inner = torch.optim.AdamW(
            groups or [{"params": []}],  # all may be another optimizer's, or frozen
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
        if not self._inner.state:
            return {}
        out = {}
        for p, name in self._names.items():
            values = self._inner.state.get(p)
            for part in self._PARTS:
                # A parameter that never had a gradient is where it would begin.
                out[f"{name}.{part}"] = values[part] if values else torch.zeros(_shape(p, part), device=p.device)
        return out

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned; raises ValueError when it is another model's."""
        if not tensors:
            return
        wanted = {f"{name}.{part}": _shape(p, part) for p, name in self._names.items() for part in self._PARTS}
        check_state(tensors, wanted)
        for p, name in self._names.items():
            self._inner.state[p] = {
                part: tensors[f"{name}.{part}"].to(p.device, torch.float32, copy=True) for part in self._PARTS
            }


def check_state(tensors: Mapping[str, Tensor], wanted: Mapping[str, torch.Size]) -> None:
    """Raise ValueError unless `tensors` have exactly these names and shapes."""
    problem = "the optimizer state does not fit this model"
    odd = sorted(set(tensors) ^ set(wanted))
    if odd:
        raise ValueError(f"{problem}: {odd[0]} is {'not in the model' if odd[0] in tensors else 'missing'}")
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{problem}: {name} is {list(tensors[name].shape)} where the model has {list(shape)}")


def _shape(parameter: Tensor, part: str) -> torch.Size:
    return torch.Size() if part == "step" else parameter.shape
