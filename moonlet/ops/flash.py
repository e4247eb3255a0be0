"""Attention by the `flash_attn` package (arXiv 2307.08691), where it is installed and a GPU is there.

It never writes the [T, S] matrix, reads grouped keys as they are, and takes packed documents as sequences of their own
lengths, so that nothing is computed that a mask would hide. It knows fp16 and bf16, one width for keys and values (the
narrower is padded) of at most 256, and queries that stand at the end of the keys.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.ops.dispatch import register

_WIDEST = 256


@cache
def package() -> ModuleType | None:
    """The package, or None where it is missing or does not fit this PyTorch; looked for once."""
    try:
        module = importlib.import_module("flash_attn")
    except (ImportError, OSError, RuntimeError):  # a build for another version fails in one of these ways
        return None
    return module if hasattr(module, "flash_attn_func") and hasattr(module, "flash_attn_varlen_func") else None


def fits(q: Tensor, k: Tensor, v: Tensor, start: int | Tensor) -> bool:
    """Whether these inputs are ones it can take."""
    return (
        q.is_cuda
        and q.dtype in (torch.bfloat16, torch.float16)
        and max(q.shape[-1], v.shape[-1]) <= _WIDEST
        and isinstance(start, int)
        and start + q.shape[2] == k.shape[2]
        and package() is not None
    )


@register("attention", "flash")
def flash(
    q: Tensor, k: Tensor, v: Tensor, scale: float, start: int | Tensor, documents: Tensor | None = None
) -> Tensor:
    """Attend as `ops.attention.attention` says. Raises ValueError where `flash_attn` is missing."""
    library = package()
    if library is None:
        raise ValueError("attention=flash needs the package flash_attn; install it with: pip install flash-attn")
    K, V = q.shape[-1], v.shape[-1]
    width = max(K, V)
    # Its layout is [B, T, H, K].
    q, k, v = (F.pad(x, (0, width - x.shape[-1])).transpose(1, 2) for x in (q, k, v))
    if documents is None:
        out = library.flash_attn_func(q, k, v, softmax_scale=scale, causal=True)
    else:
        B, T = documents.shape
        ends = borders(documents)
        # Rows are laid end to end; T bounds every document's length without asking the GPU for the longest.
        flat = (x.flatten(0, 1) for x in (q, k, v))
        out = library.flash_attn_varlen_func(*flat, ends, ends, T, T, softmax_scale=scale, causal=True)
        out = out.unflatten(0, (B, T))
    result: Tensor = out[..., :V].transpose(1, 2)
    return result  # (B, H, T, V)


def borders(documents: Tensor) -> Tensor:
    """Where documents begin when rows are laid end to end, and where the last one ends: int32 [documents + 1].

    documents: int64 [B, T]; a document's tokens stand together, and none crosses rows.
    """
    B, T = documents.shape
    first = torch.ones(B, T, dtype=torch.bool, device=documents.device)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    begins = first.flatten().nonzero().flatten()
    return F.pad(begins, (0, 1), value=B * T).to(torch.int32)
