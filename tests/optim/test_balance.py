"""What the routers' counts say, and that a step moves the bias and clears them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from moonlet.optim.balance import balance_step, describe_loads, routers_of


def test_a_step_moves_the_bias_towards_an_even_load_and_returns_the_counts(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    first, second = routers_of(model)
    first.load += torch.tensor([8, 0, 4, 4, 4, 4, 4, 4])
    second.load += 4
    before = [r.e_score_correction_bias.clone() for r in (first, second)]
    result = balance_step(model, 0.1)
    moved = first.e_score_correction_bias - before[0]
    assert moved.tolist() == pytest.approx([-0.1, 0.1, 0, 0, 0, 0, 0, 0], abs=1e-6)
    assert torch.equal(second.e_score_correction_bias, before[1])
    assert result.pop("load_entropy") == pytest.approx((math.log(4) / 4 + 0.75 * math.log(8)) / math.log(8))
    assert result == {"load_max": 2.0, "load_dead": 1.0, "loads": [[8, 0, 4, 4, 4, 4, 4, 4], [4] * 8]}
    assert not first.load.any()
    assert not second.load.any()


def test_a_model_without_routers_has_no_balance(tiny_model: Callable[..., Any]) -> None:
    assert balance_step(tiny_model(first_k_dense_replace=3), 0.1) == {}


def test_loads_are_described_by_share_worst_and_entropy() -> None:
    said = describe_loads([[1, 1, 1, 1], [4, 0, 0, 0], [0, 0, 0, 0]])
    assert said["load"][:2] == [[0.25] * 4, [1, 0, 0, 0]]
    assert said["max_over_mean"] == [1, 4, 0]
    assert said["entropy"] == pytest.approx([math.log(4), 0, 0], abs=1e-5)
