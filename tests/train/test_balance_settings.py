"""The recipe's balance settings reach the bias: read from the checkpoints of whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moonlet.cli import job
from moonlet.train.checkpoint import checkpoints
from tests.train import tiny

STEPS = 12


def biases(folder: Path, *overrides: str) -> torch.Tensor:
    """The only router's bias after each step, fp32 [steps, E]."""
    every = ("train.save_every=1", f"train.keep_last={STEPS}", "train.eval_every=0")
    job.start(tiny.recipe(folder, *every, *overrides), folder / "run", tiny.quiet())
    saved = [load_file(path / "model.safetensors") for path in checkpoints(folder / "run" / "checkpoints")]
    assert len(saved) == STEPS
    return torch.stack([tensors["model.layers.1.mlp.gate.e_score_correction_bias"] for tensors in saved])


def test_the_sign_step_moves_every_expert_that_is_off_the_mean_by_the_speed(tmp_path: Path) -> None:
    moves = biases(tmp_path, "optim.bias_update_speed=0.01").diff(dim=0)
    assert set((moves * 100).round().abs().flatten().tolist()) <= {0.0, 1.0}
    assert moves.any()


def test_the_zero_mean_step_keeps_the_mean_at_zero(tmp_path: Path) -> None:
    found = biases(tmp_path, "optim.bias_update_speed=0.01", "optim.balance=zero-mean")
    assert found.any()
    # Three experts on one side of the mean: the sign step would have moved the mean by half the speed.
    assert ((found * 200).round() % 2 == 1).any()
    assert found.mean(1).abs().max() < 1e-7


def test_a_frozen_bias_stays_as_it_is_and_the_rest_goes_on(tmp_path: Path) -> None:
    found = biases(tmp_path, "optim.bias_freeze_fraction=0.5")
    assert found[: STEPS // 2].diff(dim=0).any(1).all()
    assert torch.equal(found[STEPS // 2 - 1 :], found[-1:].expand(STEPS // 2 + 1, -1))


@pytest.mark.parametrize("override", ["optim.balance=off", "optim.bias_update_speed=0"])
def test_without_balance_the_bias_is_never_touched(tmp_path: Path, override: str) -> None:
    assert not biases(tmp_path, override).any()
