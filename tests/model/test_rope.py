"""Rotary positions: lengths are kept, products depend on distance alone, tables agree wherever they start."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moonlet.config import ModelConfig, RopeScaling
from moonlet.model.rope import Rope, frequencies, rotate, rotate_halves

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


def test_linear_scaling_is_a_position_divided() -> None:
    scaled = CONFIG.replace(rope_scaling=RopeScaling(4.0, type="linear"))
    x = torch.randn(8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(turn(x, 12, scaled), turn(x, 3))


def dynamic(trained: int = 16, factor: float = 3.0) -> ModelConfig:
    return CONFIG.replace(max_position_embeddings=trained, rope_scaling=RopeScaling(factor, type="dynamic"))


def test_dynamic_scaling_changes_nothing_up_to_the_trained_length() -> None:
    for start, length in ((0, 16), (10, 6), (15, 1)):
        for a, b in zip(
            Rope(dynamic())(start, length, torch.device("cpu")),
            Rope(CONFIG)(start, length, torch.device("cpu")),
            strict=True,
        ):
            assert torch.equal(a, b)


def test_dynamic_scaling_raises_the_base_with_the_length_reached() -> None:
    cos, sin = Rope(dynamic())(0, 40, torch.device("cpu"))
    base = 100.0 * (3.0 * 40 / 16 - 2.0) ** (8 / 6)
    for i in range(4):
        for position in (0, 1, 39):
            angle = position * base ** (-2 * i / 8)
            assert cos[position, i].item() == pytest.approx(math.cos(angle), abs=1e-5)
            assert sin[position, i].item() == pytest.approx(math.sin(angle), abs=1e-5)


def test_dynamic_frequencies_depend_on_no_earlier_text_and_no_other_row() -> None:
    used, fresh = Rope(dynamic()), Rope(dynamic())
    used(0, 45, torch.device("cpu"))
    starts = torch.tensor([5, 38, 15])
    for part, together in enumerate(used(starts, 3, torch.device("cpu"))):
        for row, start in enumerate(starts.tolist()):
            torch.testing.assert_close(together[row], fresh(start, 3, torch.device("cpu"))[part], rtol=1e-6, atol=1e-6)


def test_halves_are_interleaved_pairs_in_another_order() -> None:
    x = torch.randn(2, 9, 3, 8, generator=torch.Generator().manual_seed(0))
    rotation = Rope(CONFIG)(4, 9, x.device)
    halves = x.unflatten(-1, (4, 2)).transpose(-1, -2).flatten(-2)  # evens, then odds
    expected = rotate(x, rotation).unflatten(-1, (4, 2)).transpose(-1, -2).flatten(-2)
    torch.testing.assert_close(rotate_halves(halves, rotation), expected)


def test_what_is_not_turned_stays_as_it_is() -> None:
    x = torch.randn(1, 9, 2, 13, generator=torch.Generator().manual_seed(0))
    out = rotate_halves(x, Rope(CONFIG)(1, 9, x.device))
    assert torch.equal(out[..., 8:], x[..., 8:])
    assert not torch.isclose(out[..., :8], x[..., :8]).all(-1).any()


def test_yarns_own_multiplier_reaches_cos_and_sin() -> None:
    config = CONFIG.replace(rope_scaling=RopeScaling(32.0, 16, mscale_all_dim=0.0))
    cos, sin = Rope(config)(0, 10, torch.device("cpu"))
    torch.testing.assert_close(cos**2 + sin**2, torch.full_like(cos, (0.1 * math.log(32) + 1) ** 2))
