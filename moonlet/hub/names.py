"""How parameters in memory map to tensors on disk.

One to one, but for the mixtures of experts. In memory `mlp.experts.gate_up_proj` [E, 2I, D] and `mlp.experts.down_proj`
[E, D, I] hold all experts; on disk every expert has three matrices of its own, under names that differ by family:

| family | mixture | an expert's gate, up, down |
|---|---|---|
| DeepSeek-V3, Kimi-K2, Moonlight, GLM-4, Llama | `mlp` | `gate_proj`, `up_proj`, `down_proj` |
| Kimi Linear, as Moonshot publishes it | `block_sparse_moe` | `w1`, `w3`, `w2` |

Dense layers lie under `mlp` and shared experts are `{gate,up,down}_proj` in both.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import Tensor

from moonlet.config import ModelConfig
from moonlet.config.wrapper import VISION

# The two matrices that a tied model has as one.
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# Parts of a mixture in memory; a dense layer has none of these names under its `mlp`.
_MIXTURE = re.compile(r"(model\.layers\.\d+\.)mlp(\.(?:gate|experts|shared_experts)\..*)$")
_DENSE = re.compile(r"(model\.layers\.\d+\.)(\w+)(\.(?:gate|up|down)_proj\.weight)$")
_STACK = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)$")

# What stays fp32 whatever the other weights are: a bias that moves by steps of 1e-3, logarithms of rates.
_FP32 = ("e_score_correction_bias", "A_log", "dt_bias")
# Frequencies, which published files carry and no model needs. Kimi-K2's even have the wrong length (specs: trap 5).
_FREQUENCIES = re.compile(r".*\.rotary_emb\.inv_freq$")
_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")


@dataclass(frozen=True)
class Layout:
    """One family's names on disk.

    mixture: the module that holds router, experts and shared experts.
    tied_head: whether a head that is the embedding's matrix is written all the same. transformers' class of Kimi
        Linear ties nothing, whatever the configuration says, and would leave a head that is missing at random values.
    """

    mixture: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    tied_head: bool = False

    def split(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The tensors on disk, as views, that hold the parameter `name`."""
        match = _STACK.match(name)
        name = _MIXTURE.sub(rf"\1{self.mixture}\2", name)
        if not match:
            yield name, tensor
            return
        prefix, part = name.rsplit(".", 1)
        for e in range(tensor.shape[0]):
            if part == "down_proj":
                yield f"{prefix}.{e}.{self.down}.weight", tensor[e]
            else:
                half = tensor.shape[1] // 2
                yield f"{prefix}.{e}.{self.gate}.weight", tensor[e, :half]
                yield f"{prefix}.{e}.{self.up}.weight", tensor[e, half:]

    def published(self, name: str, names: Collection[str]) -> str:
        """The layout's name of the tensor that a file, which holds `names`, calls `name`.

        transformers reads this layout, and saves it with the dense layers too in the module of the mixture.
        """
        dense = _DENSE.match(name)
        if dense is None or dense[2] != self.mixture:
            return name
        usual = f"{dense[1]}mlp{dense[3]}"
        return name if usual in names else usual


_USUAL = Layout()
_KIMI_LINEAR = Layout("block_sparse_moe", "w1", "w3", "w2", tied_head=True)


def layout_of(config: ModelConfig) -> Layout:
    """The layout of the family that `config` is written as."""
    return _USUAL if config.linear_attn_config is None else _KIMI_LINEAR


def stays_fp32(name: str) -> bool:
    """Whether the parameter or buffer `name` is kept in fp32 when the others are converted."""
    return name.endswith(_FP32)


def skipped(name: str, config: ModelConfig) -> str | None:
    """Why a tensor that some file holds is no part of what this package computes, or None where it should be one.

    Frequencies, parts that see pictures, and the layers behind the last, which predict further tokens (DeepSeek-V3's
    and GLM's files have one).
    """
    if _FREQUENCIES.match(name):
        return "stale frequencies"
    if name.startswith(VISION):
        return "vision tower and projector"
    layer = _LAYER.match(name)
    L = config.num_hidden_layers
    beyond = layer is not None and L <= int(layer[1]) < L + config.num_nextn_predict_layers
    return "layers that predict further tokens" if beyond else None
