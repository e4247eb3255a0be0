"""Muon's sweeps: every implementation equals the law, block by block."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moonlet.ops import momentum
from moonlet.ops.dispatch import implementation
from moonlet.ops.native.build import library

COUNTS = [1, 3, 2]
needs_compiler = pytest.mark.skipif(library("momentum") is None, reason="no C++ compiler here")


def draw(seed: int, rows: int = 7, columns: int = 33) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, rows, columns, generator=g) for n in COUNTS]


@needs_compiler
def test_native_equals_the_law() -> None:
    results = []
    for name in ("foreach", "native"):
        weights, momenta, gradients = draw(0), draw(1), draw(2)
        ahead = implementation("look_ahead", name)(momenta, gradients, 0.9)
        implementation("move", name)(weights, ahead, 0.99, 0.5)
        results.append([ahead, *momenta, *weights])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    ahead, m, w = results[0][0][0], results[0][1], results[0][4]
    torch.testing.assert_close(m, 0.9 * draw(1)[0] + draw(2)[0])
    torch.testing.assert_close(ahead, (draw(2)[0] + 0.9 * m)[0])
    torch.testing.assert_close(w, 0.99 * draw(0)[0] - 0.5 * ahead)


def test_cut_blocks_and_other_dtypes_take_the_general_form() -> None:
    changes: list[Callable[[Tensor], Tensor]] = [lambda t: t.double(), lambda t: t[:, ::2]]
    for change in changes:
        momenta, gradients = ([change(t) for t in draw(seed)] for seed in (1, 2))
        expected = [0.9 * m + g for m, g in zip(momenta, gradients, strict=True)]
        momentum.look_ahead(momenta, gradients, 0.9)
        for m, e in zip(momenta, expected, strict=True):
            torch.testing.assert_close(m, e)
