"""How parameters in memory map to tensors on disk.

One to one, but for the experts: `mlp.experts.gate_up_proj` [E, 2I, D] and `mlp.experts.down_proj` [E, D, I] in memory
are `mlp.experts.N.{gate,up,down}_proj.weight` on disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor

from moonlet.config import ModelConfig

_STACK = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)$")

# Tensors that published files carry and no model needs. Kimi-K2's inv_freq even has the wrong length (specs: trap 5).
_SKIPPED = re.compile(r".*\.rotary_emb\.inv_freq$")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def skipped(name: str, config: ModelConfig) -> bool:
    """Whether a tensor on disk is to be ignored: frequencies, and the layers behind the last, which predict further
    tokens (DeepSeek-V3's and GLM's files have one)."""
    layer = _LAYER.match(name)
    L = config.num_hidden_layers
    beyond = layer is not None and L <= int(layer[1]) < L + config.num_nextn_predict_layers
    return beyond or bool(_SKIPPED.match(name))


def split(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors on disk, as views, that hold the parameter `name`."""
    match = _STACK.match(name)
    if not match:
        yield name, tensor
        return
    prefix, part = match.groups()
    for e in range(tensor.shape[0]):
        if part == "down_proj":
            yield f"{prefix}.{e}.down_proj.weight", tensor[e]
        else:
            half = tensor.shape[1] // 2
            yield f"{prefix}.{e}.gate_proj.weight", tensor[e, :half]
            yield f"{prefix}.{e}.up_proj.weight", tensor[e, half:]
