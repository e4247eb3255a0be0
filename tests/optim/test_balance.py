"""What the routers' counts say, and that a step moves the bias and clears them."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from moonlet.config import ModelConfig
from moonlet.config.sections import OptimSettings
from moonlet.model.router import Router
from moonlet.optim.balance import (
    balance_step,
    bias_move,
    bias_speed,
    clear_loads,
    describe_loads,
    routers_of,
    sequence_loss,
)

counts = st.lists(st.integers(0, 10**9), min_size=2, max_size=9)


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


@given(counts)
def test_the_step_is_the_sign_of_what_is_missing_to_the_mean(row: list[int]) -> None:
    E = len(row)
    signs = [(sum(row) > E * count) - (sum(row) < E * count) for count in row]
    load = torch.tensor([row])
    assert bias_move(load, zero_mean=False).tolist() == [signs]
    zero_mean = [sign - sum(signs) / E for sign in signs]
    assert bias_move(load, zero_mean=True)[0].tolist() == pytest.approx(zero_mean, abs=1e-6)


def test_the_zero_mean_step_keeps_the_mean_of_the_bias_and_the_sign_step_does_not(
    tiny_model: Callable[..., Any],
) -> None:
    for zero_mean in (True, False):
        router = routers_of(tiny_model())[0]
        before = router.e_score_correction_bias.mean().item()
        for _ in range(10):
            router.load += torch.tensor([700, 5, 5, 5, 5, 5, 5, 5])
            balance_step(router, 0.01, zero_mean)
        drift = router.e_score_correction_bias.mean().item() - before
        assert drift == pytest.approx(0.0 if zero_mean else 10 * 0.01 * 6 / 8, abs=1e-6)


def test_without_speed_the_bias_stays_bit_for_bit_and_the_counts_are_still_told(tiny_model: Callable[..., Any]) -> None:
    router = routers_of(tiny_model())[0]
    before = router.e_score_correction_bias.clone()
    router.load += torch.tensor([8, 0, 4, 4, 4, 4, 4, 4])
    assert balance_step(router, 0.0)["load_dead"] == 1
    assert torch.equal(router.e_score_correction_bias, before)
    assert not router.load.any()


def test_the_bias_is_moved_until_its_freeze_and_never_where_balance_is_off() -> None:
    def speeds(total: int | None, **changes: Any) -> list[float]:
        settings = OptimSettings(bias_update_speed=0.5, **changes)
        return [bias_speed(settings, step, total) for step in range(10)]

    assert speeds(10) == [0.5] * 10
    assert speeds(10, bias_freeze_fraction=0.3) == [0.5] * 7 + [0.0] * 3
    assert speeds(10, bias_freeze_fraction=1.0) == [0.0] * 10
    assert speeds(None, bias_freeze_fraction=0.3) == [0.5] * 10
    assert speeds(10, balance="off") == [0.0] * 10


def test_the_bias_is_no_parameter_and_the_counts_are_not_saved(tiny_model: Callable[..., Any]) -> None:
    router = routers_of(tiny_model())[0]
    assert [name for name, _ in router.named_parameters()] == ["weight"]
    assert sorted(router.state_dict()) == ["e_score_correction_bias", "weight"]
    assert not router.e_score_correction_bias.requires_grad


def test_the_sequence_loss_is_alpha_times_the_sum_over_layers(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model().train()
    tokens = torch.randint(61, (3, 7), generator=torch.Generator().manual_seed(0))
    found: list[float] = []
    for alpha in (0.01, 1.0):
        with sequence_loss(model, alpha) as take:
            model.hidden(tokens)
            parts = [router.imbalance for router in routers_of(model)]
            assert len(parts) == 2
            assert all(part is not None and part.item() > 0.9 for part in parts)
            value = take()
            assert value is not None
            assert value.item() == pytest.approx(alpha * sum(part.item() for part in parts if part is not None))
            found.append(value.item())
            assert take() is None
    assert found[1] == pytest.approx(100 * found[0])


def test_the_sequence_loss_reaches_routers_and_what_feeds_them_but_no_expert(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model().train()
    with sequence_loss(model, 1.0) as take:
        model.hidden(torch.randint(61, (3, 7), generator=torch.Generator().manual_seed(0)))
        value = take()
    assert value is not None
    value.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {f"model.layers.{i}.mlp.gate.weight" for i in (1, 2)} <= reached
    # The first MoE layer feeds the second router; nothing comes after the second.
    assert not any("layers.2.mlp.experts" in name or "lm_head" in name for name in reached)
    for router in routers_of(model):
        assert router.e_score_correction_bias.grad is None


def test_nothing_is_computed_at_alpha_zero_and_nothing_is_kept_after_a_failure(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model().train()
    tokens = torch.randint(61, (3, 7), generator=torch.Generator().manual_seed(0))
    with sequence_loss(model, 0.0) as take:
        model.hidden(tokens)
        assert all(router.imbalance is None for router in routers_of(model))
        assert take() is None

    def fail() -> None:
        with sequence_loss(model, 1.0):
            model.hidden(tokens)
            raise RuntimeError("broke")

    with pytest.raises(RuntimeError, match="broke"):
        fail()
    model.hidden(tokens)
    assert all(router.imbalance is None for router in routers_of(model))
    clear_loads(model)


RANKS = 2
PER_RANK = ([9, 0, 3, 4], [0, 7, 3, 6])  # alone they disagree about the experts 0, 1 and 3
CONFIG = {"n_routed_experts": 4, "hidden_size": 8, "num_experts_per_tok": 2}


def _rank(rank: int, store: str, answers: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    router = Router(ModelConfig(**CONFIG))  # type: ignore[arg-type]
    router.load += torch.tensor(PER_RANK[rank])
    said = balance_step(router, 0.5)
    answers.put((said["loads"], router.e_score_correction_bias.tolist(), router.load.tolist()))
    dist.destroy_process_group()


def test_loads_are_summed_over_ranks_so_that_all_move_alike(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    ranks = [fork.Process(target=_rank, args=(rank, str(tmp_path / "store"), answers)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    told = [answers.get(timeout=60) for _ in ranks]
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    assert told == [([[9, 7, 6, 10]], [-0.5, 0.5, 0.5, -0.5], [0, 0, 0, 0])] * RANKS
