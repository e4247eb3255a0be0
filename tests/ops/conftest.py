"""Uninitialised memory holds NaN in every test of this folder, so that reading it cannot pass unnoticed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _poison_uninitialised_memory() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # among other things, fills what torch.empty returns with NaN
    yield
    torch.use_deterministic_algorithms(before)
