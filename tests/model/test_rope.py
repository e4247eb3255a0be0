"""Rotary positions: lengths are kept, products depend on distance alone, tables agree wherever they start."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moonlet.config import ModelConfig, RopeScaling
from moonlet.model.rope import Rope, frequencies, rotate

CONFIG = ModelConfig(qk_rope_head_dim=8, rope_theta=100.0)


def turn(x: torch.Tensor, position: int, config: ModelConfig = CONFIG) -> torch.Tensor:
    """x [P] at a position."""
    return rotate(x.view(1, 1, 1, -1), Rope(config)(position, 1, x.device)).flatten()


@given(a=st.integers(0, 500), b=st.integers(0, 500), shift=st.integers(0, 500))
def test_products_depend_on_distance_alone(a: int, b: int, shift: int) -> None:
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    here, there = turn(q, a) @ turn(k, b), turn(q, a + shift) @ turn(k, b + shift)
    assert here.item() == pytest.approx(there.item(), abs=1e-3)  # fp32 angles up to 1000 radians
    assert turn(q, a).norm().item() == pytest.approx(q.norm().item(), rel=1e-5)


def test_pairs_are_interleaved_and_turn_by_position_times_frequency() -> None:
    x = torch.arange(1.0, 9.0)
    out = turn(x, 3)
    for i in range(4):
        angle = 3 * 100.0 ** (-2 * i / 8)
        a, b = x[2 * i].item(), x[2 * i + 1].item()
        assert out[2 * i].item() == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-5)
        assert out[2 * i + 1].item() == pytest.approx(a * math.sin(angle) + b * math.cos(angle), abs=1e-5)


def test_position_zero_turns_nothing() -> None:
    x = torch.randn(8)
    assert torch.equal(turn(x, 0), x)


@pytest.mark.parametrize("start", [0, 1, 250, 255, 256, 1000])
def test_a_table_extended_later_equals_one_made_at_once(start: int) -> None:
    grown, whole = Rope(CONFIG), Rope(CONFIG)
    grown(0, 5, torch.device("cpu"))
    late, all_ = grown(start, 20, torch.device("cpu")), whole(0, start + 20, torch.device("cpu"))
    for a, b in zip(late, all_, strict=True):
        assert torch.equal(a, b[start:])


def test_rows_of_different_starts_equal_each_alone() -> None:
    starts = torch.tensor([7, 0, 300])
    rope = Rope(CONFIG)
    for part, together in enumerate(rope(starts, 4, torch.device("cpu"))):
        assert together.shape == (3, 4, 4)
        for row, start in enumerate(starts.tolist()):
            assert torch.equal(together[row], rope(start, 4, torch.device("cpu"))[part])


def test_bf16_is_turned_in_fp32_and_rounded_once() -> None:
    x = torch.randn(1, 50, 2, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    rotation = Rope(CONFIG)(0, 50, x.device)
    out = rotate(x, rotation)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, rotate(x.float(), rotation).bfloat16())


def test_yarn_leaves_fast_pairs_and_slows_the_others() -> None:
    plain = frequencies(64, 50000.0)
    # Kimi-K2: beta_fast = beta_slow = 1 makes the ramp a step between pairs 19 and 20.
    k2 = frequencies(64, 50000.0, RopeScaling(32.0, 4096, beta_fast=1.0, beta_slow=1.0))
    torch.testing.assert_close(k2[:20], plain[:20], rtol=0, atol=0)
    torch.testing.assert_close(k2[20:], plain[20:] / 32, rtol=1e-6, atol=0)


def test_yarns_own_multiplier_reaches_cos_and_sin() -> None:
    config = CONFIG.replace(rope_scaling=RopeScaling(32.0, 16, mscale_all_dim=0.0))
    cos, sin = Rope(config)(0, 10, torch.device("cpu"))
    torch.testing.assert_close(cos**2 + sin**2, torch.full_like(cos, (0.1 * math.log(32) + 1) ** 2))
