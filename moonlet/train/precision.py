"""Which dtype to compute in: probed, not guessed.

A CPU may know bf16 and still be slower at it, so the two are timed on products of the size a small model has: cores
with AMX or AVX512-BF16 take bf16 in a fraction of the time, others widen every number first.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

# bf16 must be this much faster than fp32 to be worth its rounding.
_GAIN = 1.3
# Both are timed in turns for this long in all, so that other processes slow both alike.
_PROBE_SECONDS = 0.25
_FEWEST_TURNS = 10


@dataclass(frozen=True)
class Precision:
    """A compute dtype, and why it was taken, in a few words."""

    dtype: torch.dtype
    why: str

    @property
    def name(self) -> str:
        """As a recipe has it."""
        return str(self.dtype).removeprefix("torch.")


def choose_precision(requested: str, device: torch.device) -> Precision:
    """Resolve "auto", "float32" or "bfloat16". On a CPU "auto" takes a quarter of a second."""
    if requested != "auto":
        return Precision({"float32": torch.float32, "bfloat16": torch.bfloat16}[requested], "asked for")
    if device.type == "cuda":
        known = torch.cuda.is_bf16_supported()
        return Precision(torch.bfloat16 if known else torch.float32, f"this GPU has {'' if known else 'no '}bf16")
    if device.type != "cpu":
        return Precision(torch.float32, "the only one tested on this device")
    gain = _bf16_gain()
    return Precision(torch.bfloat16 if gain > _GAIN else torch.float32, f"timed: bf16 is {gain:.1f} x as fast as fp32")


def compute_dtype(requested: str, device: torch.device) -> torch.dtype:
    """The dtype of `choose_precision`."""
    return choose_precision(requested, device).dtype


def _bf16_gain() -> float:
    """How many times faster one product, 2,048 x 256 x 512, is in bf16 than in fp32; the best times of both."""
    factors = {
        dtype: (torch.ones(2048, 256, dtype=dtype), torch.ones(256, 512, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    best = dict.fromkeys(factors, float("inf"))
    start, turns = time.perf_counter(), 0
    while turns < _FEWEST_TURNS or time.perf_counter() - start < _PROBE_SECONDS:
        for dtype, (a, b) in factors.items():
            begin = time.perf_counter()
            a @ b
            best[dtype] = min(best[dtype], time.perf_counter() - begin)
        turns += 1
    return best[torch.float32] / best[torch.bfloat16]


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
