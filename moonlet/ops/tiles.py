"""How much an elementwise chain should take on at a time, and what it computes in.

A chain of ten elementwise operations over a large tensor reads and writes memory ten times. Taken in pieces that stay
in a core's cache it does so once, at the price of calling each operation once a piece. A GPU has no such cache and
dear calls: there all is one piece.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

# Elements a piece and thread: half a megabyte of fp32. Found by timing; half and twice as many do about as well.
# PyTorch splits an elementwise operation among threads where each then has 32,768 or more.
_ELEMENTS = 128 * 1024


def tile_elements(device: torch.device) -> int:
    """Elements that are best worked on at once."""
    if device.type != "cpu":
        return 2**62
    return torch.get_num_threads() * _ELEMENTS


def pieces(rows: int, width: int, device: torch.device) -> Iterator[slice]:
    """Cut `rows` rows of `width` elements."""
    step = max(1, tile_elements(device) // width)
    for begin in range(0, rows, step):
        yield slice(begin, min(begin + step, rows))


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """What such a chain over numbers of `dtype` computes in: fp32, or fp64 where they are."""
    return torch.promote_types(dtype, torch.float32)
