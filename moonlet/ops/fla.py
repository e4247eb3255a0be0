"""The delta rule by the package `fla` (flash-linear-attention), where it is installed and a GPU is there.

Its Triton kernels know fp16 and bf16 inputs, keys of at most 256 and an fp32 state [sequences, H, K, V]. Documents are
sequences laid end to end in one row, each with a state of its own; the first continues the state before the row.
Short calls without gradients take the package's recurrence, which has no backward; the rest its chunks. The package is
not imported before the first call on a GPU: importing it costs seconds, and fails on a machine without one.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from moonlet.ops.dispatch import register

_WIDEST = 256
_SHORT = 64  # tokens; one chunk of the package
_MODULE = "fla.ops.kda"


@cache
def kernel(name: str = "chunk_kda") -> Callable[..., Any] | None:
    """The package's function, or None where it is missing or does not fit this machine; looked for once."""
    if available() is not None:
        return None
    try:
        found = getattr(importlib.import_module(_MODULE), name, None)
    except Exception:  # Triton and the package itself refuse a machine in more ways than ImportError
        return None
    return found if callable(found) else None


def available() -> str | None:
    """Why it cannot be used, or None; the package is looked for, not imported."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        missing = importlib.util.find_spec("fla") is None
    except (ImportError, ValueError):  # a module of that name without a spec
        missing = True
    return "the package fla is not installed; install it with: pip install flash-linear-attention" if missing else None


def fits(q: Tensor, v: Tensor, g: Tensor, documents: Tensor | None) -> bool:
    """Whether these inputs are ones it can take."""
    return (
        q.is_cuda
        and q.dtype in (torch.bfloat16, torch.float16)
        and g.dtype == torch.float32
        and max(q.shape[-1], v.shape[-1]) <= _WIDEST
        and (documents is None or q.shape[0] == 1)
        and kernel() is not None
    )


@register("delta_rule", "fla")
def fla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float,
    state: Tensor | None = None,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `ops.delta.delta_rule` says. Raises ValueError where it cannot: no package, or documents in several rows."""
    recurrent = q.shape[1] <= _SHORT and not torch.is_grad_enabled()
    function = (recurrent and kernel("fused_recurrent_kda")) or kernel()
    if function is None:
        raise ValueError(f"delta_rule=fla: {available() or 'the installed package fla has no chunk_kda that loads'}")
    more: dict[str, Any] = {"scale": scale, "output_final_state": True}
    if documents is not None:
        if len(documents) != 1:
            raise ValueError(
                f"delta_rule=fla takes documents in 1 row, not in {len(documents)}; use delta_rule=chunked"
            )
        ends = borders(documents)
        more["cu_seqlens"] = ends
        if state is not None:
            state = torch.cat([state, state.new_zeros(len(ends) - 2, *state.shape[1:])])
    # The layout [K, V] by either name the package has had for the other one.
    names = inspect.signature(function).parameters
    more |= {name: False for name in ("state_v_first", "transpose_state_layout") if name in names}
    o, last = function(q, k, v, g, beta, initial_state=None if state is None else state.contiguous(), **more)
    return o.to(q.dtype), last[-1:] if documents is not None else last


def borders(documents: Tensor) -> Tensor:
    """Where the documents of one row [1, T] begin, and T: int64 [documents + 1]."""
    first = torch.ones_like(documents[0], dtype=torch.bool)
    first[1:] = documents[0, 1:] != documents[0, :-1]
    return torch.nn.functional.pad(first.nonzero().flatten(), (0, 1), value=documents.shape[1])
