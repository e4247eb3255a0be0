"""Initialisation, all of it here.

| parameter | distribution |
|---|---|
| every matrix, the embedding and the head included | normal, mean 0, std `initializer_range` (0.02 as published) |
| norm weights | one |
| e_score_correction_bias | zero |

Each parameter draws from a generator of its own, seeded by the model's seed and the parameter's name: its values
depend neither on the order of construction nor on what other parameters a process holds.
"""

from __future__ import annotations

import hashlib

import torch

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
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=_generator(seed, name)) * std)
    for buffer in model.buffers():
        buffer.zero_()


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
