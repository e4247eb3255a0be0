"""Each fast path of the experts and the optimizer switched off by its setting: the same losses, within rounding."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from moonlet.config.sections import OptimSettings
from moonlet.ops import newton_schulz as ns
from moonlet.ops.dispatch import force
from moonlet.ops.native.build import library
from moonlet.optim.optimizer import build_optimizer
from tests.train.tiny import batch, model, step

PATHS = [("experts", "sorted"), ("experts", "reference"), ("route", "reference"), ("newton_schulz", "batched")]


def losses(*off: tuple[str, str], dtype: torch.dtype = torch.float32) -> list[float]:
    """Of fifty steps of the tiny model."""
    torch.manual_seed(0)
    with ExitStack() as stack:
        for path in off:
            stack.enter_context(force(*path))
        trained = model()
        trained.compute_dtype = dtype
        optimizer = build_optimizer(trained, OptimSettings(kind="muon"))
        return [step(trained, [batch(i % 5)], optimizer, lr=3e-3).loss for i in range(50)]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def fast(request: pytest.FixtureRequest) -> tuple[torch.dtype, list[float]]:
    # Of matrices as small as these the chooser would take the batched form.
    small = [("newton_schulz", "native")] * (request.param == torch.bfloat16 and ns._is_quicker())
    return request.param, losses(*small, dtype=request.param)


@pytest.mark.skipif(library("experts") is None, reason="no compiler: there is nothing to switch off")
@pytest.mark.parametrize("path", PATHS, ids="=".join)
def test_losses_are_the_same_within_rounding(path: tuple[str, str], fast: tuple[torch.dtype, list[float]]) -> None:
    dtype, expected = fast
    found = losses(path, dtype=dtype)
    assert found[-1] < 0.8 * found[0]  # it learns
    # Rounding differs, and where two experts nearly tie a token may take the other.
    first, all_ = (1e-5, 5e-3) if dtype == torch.float32 else (5e-3, 0.1)
    assert found[:3] == pytest.approx(expected[:3], rel=first)
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < all_
