"""Initialisation, all of it here.

| parameter | distribution |
|---|---|
| every matrix, the embedding and the head included | normal, mean 0, std `initializer_range` (0.02 as published) |
| filters of KDA's short convolutions | the same, as both published codes have it: no mean or scale of their own |
| A_log | ln a, a uniform in 1..16 |
| dt_bias | softplus^-1(dt), ln dt uniform in ln 0.001..ln 0.1, and dt at least 0.0001 |
| norm weights | one |
| e_score_correction_bias | zero |

So at first a key channel keeps e^(-a dt) of itself from one token to the next, 0.2 to 0.999: KDA begins with memories
of one to a thousand tokens.

Each parameter draws from a generator of its own, seeded by the model's seed and the parameter's name: its values
depend neither on the order of construction nor on what other parameters a process holds.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from moonlet.config import ModelConfig, preset
from moonlet.model.model import CausalLM


def build(config: ModelConfig | str, device: str | torch.device = "cpu", seed: int = 0) -> CausalLM:
    """Build and initialise a model with fp32 weights.

    Args:
        config: a configuration or a preset's name.
        device: where its weights lie; "meta" builds the shapes without memory.
        seed: equal seeds give equal weights on every device.
    """
    config = preset(config) if isinstance(config, str) else config
    with torch.device("meta"):
        model = CausalLM(config)
    if torch.device(device).type == "meta":
        return model
    model.to_empty(device=device)
    initialise(model, seed)
    return model


@torch.no_grad()
def initialise(model: CausalLM, seed: int) -> None:
    """Fill every parameter and buffer as the table above says."""
    std = model.config.initializer_range
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            parameter.copy_(_uniform(parameter, 1.0, 16.0, seed, name).log())
        elif name.endswith("dt_bias"):
            dt = _uniform(parameter, math.log(1e-3), math.log(1e-1), seed, name).exp().clamp(min=1e-4)
            parameter.copy_(dt + (-torch.expm1(-dt)).log())  # ln(e^dt - 1), also where dt is small
        elif parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=_generator(seed, name)) * std)
    for buffer in model.buffers():
        buffer.zero_()


def _uniform(parameter: Tensor, low: float, high: float, seed: int, name: str) -> Tensor:
    return low + (high - low) * torch.rand(parameter.shape, generator=_generator(seed, name))


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
