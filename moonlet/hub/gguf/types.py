"""How GGUF stores numbers: plain, or in blocks of 32 along a row that share one scale.

| type | bits a number | a block of 32 |
|---|---|---|
| F32, F16, BF16 | 32, 16, 16 | |
| Q8_0 | 8.5 | fp16 d = max abs / 127, then 32 int8: x = d q |
| Q4_0 | 4.5 | fp16 d = extreme / -8, then 16 bytes of two codes: x = d (q - 8) |

As llama.cpp's converter does, vectors, norms, routers, short convolutions and rates stay F32 whatever the type, and a
matrix whose rows are no multiple of 32 is F16 where a block type was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 32
# Bytes of a block, which is one number for the plain types.
_BYTES = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (BLOCK, 34), "Q4_0": (BLOCK, 18)}
TYPES = tuple(_BYTES)
# Rows are converted in pieces of about this many numbers, so that the largest matrix costs little beside itself.
_AT_ONCE = 2**24
_EXACT = ("_norm.weight", "ffn_gate_inp.weight", "conv1d_q.weight", "conv1d_k.weight", "conv1d_v.weight")
_EXPERTS = "_exps.weight"


def check_type(kind: str) -> str:
    """`kind` as it is spelt here.

    Raises:
        ValueError: it is none of TYPES.
    """
    if kind.upper() not in TYPES:
        raise ValueError(f"GGUF type {kind!r} is unknown; valid: {', '.join(TYPES)}")
    return kind.upper()


def type_of(name: str, shape: Sequence[int], kind: str, experts: str | None = None) -> str:
    """The type that the tensor `name` of `shape` has in a file of `kind`, whose routed experts are of `experts`."""
    if len(shape) < 2 or name.endswith(_EXACT) or not name.endswith(".weight"):
        return "F32"
    kind = asked_for(name, kind, experts)
    return kind if shape[-1] % _BYTES[kind][0] == 0 else "F16"


def asked_for(name: str, kind: str, experts: str | None) -> str:
    """`kind`, or for routed experts `experts` where that is given."""
    return experts if experts is not None and name.endswith(_EXPERTS) else kind


def size_of(shape: Sequence[int], kind: str) -> int:
    """Bytes of a tensor."""
    block, size = _BYTES[kind]
    return prod(shape) // block * size


def stored(tensor: Tensor, kind: str, package: Any) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a tensor [..., width], some rows at a time.

    Args:
        kind: of TYPES; with a block type the width is a multiple of 32.
        package: gguf, whose quantiser is used for the block types.
    """
    rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() else tensor.reshape(1, 1)
    for part in rows.split(max(1, _AT_ONCE // rows.shape[-1])):
        yield _bytes(part, kind, package)


def _bytes(rows: Tensor, kind: str, package: Any) -> NDArray[np.uint8]:
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(kind)
    if plain is not None:
        return rows.to("cpu", plain).contiguous().view(torch.uint8).numpy()
    numbers = rows.to("cpu", torch.float32).contiguous().numpy()
    out: NDArray[np.uint8] = package.quants.quantize(numbers, package.GGMLQuantizationType[kind])
    return out
