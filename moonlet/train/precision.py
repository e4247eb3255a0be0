"""Which dtype to compute in: probed, not guessed.

A CPU may know bf16 and still be slower at it, so the two are timed on products of the size a small model has.
"""

from __future__ import annotations

import time

import torch

# bf16 must be this much faster than fp32 to be worth its rounding.
_GAIN = 1.3


def compute_dtype(requested: str, device: torch.device) -> torch.dtype:
    """Resolve "auto", "float32" or "bfloat16". On a CPU "auto" takes about a tenth of a second."""
    if requested != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[requested]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type != "cpu":
        return torch.float32
    return torch.bfloat16 if _seconds(torch.float32) > _GAIN * _seconds(torch.bfloat16) else torch.float32


def _seconds(dtype: torch.dtype) -> float:
    """Best of a few timings of one product, 2,048 x 256 x 512."""
    a, b = torch.ones(2048, 256, dtype=dtype), torch.ones(256, 512, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begin)
    return best


def pick_device(requested: str) -> torch.device:
    """Resolve "auto" to a GPU where there is one; raises ValueError for a device this machine lacks."""
    if requested == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(requested)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"train.device is {requested!r}, which this machine does not have; try cpu") from None
    return device
