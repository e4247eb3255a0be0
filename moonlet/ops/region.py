"""Pieces of the model that a compiler may take over in training.

A region is a function of tensors (and of the modules whose weights it uses) that a compiler can trace whole: products,
norms, casts, rotations, with nothing in it that waits for data or has a backward of its own. It runs as it is written,
except inside `fused`, which puts something else in place of every region until the block ends: see train/compile.py.
A layer is made of a few regions, and what stands between them (attention, experts, the delta rule) stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(eq=False)
class Region:
    """One of them: its name, the function as written, and what runs in its place (None: itself)."""

    name: str
    function: Callable[..., Any]
    instead: Callable[..., Any] | None = None


REGIONS: list[Region] = []


def region(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: make the function, or method, a region."""
    piece = Region(function.__qualname__, function)
    REGIONS.append(piece)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        # A region within a region is part of it.
        if torch.compiler.is_compiling() or piece.instead is None:
            return function(*args, **kwargs)
        out: R = piece.instead(*args, **kwargs)
        return out

    return call


@contextmanager
def fused(replacements: Mapping[Region, Callable[..., Any]]) -> Iterator[None]:
    """Run these in place of their regions inside the block."""
    before = {piece: piece.instead for piece in replacements}
    for piece, function in replacements.items():
        piece.instead = function
    try:
        yield
    finally:
        for piece, earlier in before.items():
            piece.instead = earlier
