"""A killed run, resumed, is the run that was never killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moonlet.cli import job
from moonlet.config import Recipe
from moonlet.train.checkpoint import checkpoints, newest_good, problem_of, step_of
from moonlet.train.loop import Trainer
from moonlet.train.metrics import read_metrics
from moonlet.train.run import Run
from tests.train import tiny


def losses(run: Path) -> list[tuple[int, float, float]]:
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(run / "metrics.jsonl", "train")]


def final_state(run: Path) -> dict[str, torch.Tensor]:
    newest = newest_good(run / "checkpoints")
    assert newest is not None
    return load_file(newest / "model.safetensors") | {
        f"state/{k}": v for k, v in load_file(newest / "state" / "optimizer.safetensors").items()
    }


def assert_same_run(a: Path, b: Path) -> None:
    assert losses(a) == losses(b)
    left, right = final_state(a), final_state(b)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run: 30 steps of 4 sequences, over 6 epochs, two micro-batches a step."""
    folder = tmp_path_factory.mktemp("straight")
    job.start(tiny.recipe(folder, "train.steps=30", "train.save_every=1"), folder / "run", tiny.quiet())
    return folder / "run"


class Cut(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("cut", [1, 4, 11, 17, 26])
@pytest.mark.parametrize("where", ["between steps", "between micro-batches"])
def test_resume_is_bit_exact(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int, where: str
) -> None:
    original = Trainer._micro_batches

    def cut_here(self: Trainer):  # type: ignore[no-untyped-def]
        for i, batch in enumerate(original(self)):
            if self.progress.step == cut and i == (0 if where == "between steps" else 1):
                raise Cut
            yield batch

    # The text is the straight run's, so that both prepare the same data.
    recipe = tiny.recipe(straight.parent, "train.steps=30", "train.save_every=1")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_micro_batches", cut_here)
        with pytest.raises(Cut):
            job.start(recipe, tmp_path / "run", tiny.quiet())
    assert len(losses(tmp_path / "run")) == cut
    torch.manual_seed(12345)  # whatever else the process drew in between
    job.go_on(Run.open(tmp_path / "run"), tiny.quiet())
    assert_same_run(straight, tmp_path / "run")


def assert_a_cut_changes_nothing(recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train straight through in folder/straight, and with a kill before step 8 in folder/run."""
    job.start(recipe, folder / "straight", tiny.quiet())
    original = Trainer._step

    def cut_here(self: Trainer) -> None:
        if self.progress.step == 7:
            raise Cut
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", cut_here)
        with pytest.raises(Cut):
            job.start(recipe, folder / "run", tiny.quiet())
    job.go_on(Run.open(folder / "run"), tiny.quiet())
    assert_same_run(folder / "straight", folder / "run")


LINEAR = (
    "model.q_lora_rank=null", "model.mla_use_nope=true", "model.linear_attn_config.kda_layers=[1]",
    "model.linear_attn_config.head_dim=8", "model.linear_attn_config.num_heads=2",
)  # fmt: skip
RECALL = ("data.kind=mqar", "data.path=", "data.sizes=[2,4]", "data.words=4", "data.held_out=4")


@pytest.mark.parametrize("changes", [LINEAR, (*RECALL, *LINEAR)], ids=["kimi linear", "a recall task"])
def test_resume_is_bit_exact_for(changes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_a_cut_changes_nothing(tiny.recipe(tmp_path, "train.save_every=2", *changes), tmp_path, monkeypatch)


def test_resume_is_bit_exact_with_every_part_of_the_balance_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = (
        "optim.balance=zero-mean", "optim.aux_loss_alpha=0.1", "optim.bias_freeze_fraction=0.3",
        "optim.bias_update_speed=0.3", "optim.schedule=moonlight", "train.save_every=1",
    )  # fmt: skip
    # Every step after the three of the warm-up counts as a collapse, so the count runs across the cut.
    monkeypatch.setattr("moonlet.train.alarm.PATIENCE", 5)
    monkeypatch.setattr("moonlet.train.alarm.CROWD", 0.0)
    assert_a_cut_changes_nothing(tiny.recipe(tmp_path, *changes), tmp_path, monkeypatch)
    alarms, again = (list(read_metrics(tmp_path / name / "metrics.jsonl", "alarm")) for name in ("straight", "run"))
    assert alarms == again
    assert [record["step"] for record in alarms] == [8]
    aux = [r["aux_loss"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl", "train")]
    assert len(aux) == 12
    assert min(aux) > 0


def test_cut_points_fall_inside_epochs_and_on_several_of_them(straight: Path) -> None:
    recipe = Run.open(straight).recipe()
    from moonlet.eval.report import run_dataset

    tokens = len(run_dataset(Run.open(straight)).tokens("train"))
    sequences = (tokens - 1) // recipe.train.seq_len
    positions = [cut * recipe.train.batch_size for cut in (1, 4, 11, 17, 26)]
    assert any(p % sequences for p in positions)
    assert len({p // sequences for p in positions}) > 1


def test_a_finished_run_resumes_to_itself(straight: Path) -> None:
    before = final_state(straight)
    evals = list(read_metrics(straight / "metrics.jsonl", "eval"))
    job.go_on(Run.open(straight), tiny.quiet())
    after = final_state(straight)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert list(read_metrics(straight / "metrics.jsonl", "eval")) == evals


def test_resume_from_an_older_checkpoint_when_the_newest_is_damaged(straight: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(straight.parent, "train.steps=30", "train.save_every=1", "train.keep_last=3")
    job.start(recipe, tmp_path / "run", tiny.quiet())
    newest = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    job.go_on(Run.open(tmp_path / "run"), tiny.quiet())
    assert problem_of(newest) is None
    assert_same_run(straight, tmp_path / "run")


@pytest.mark.slow
def test_twenty_kills_lose_nothing_acknowledged(tmp_path: Path) -> None:
    """SIGKILL at seeded random moments of a loop that saves every 2 steps; every restart works."""
    steps, seed = 100_000, 7
    recipe = tiny.recipe(tmp_path, f"train.steps={steps}", "train.eval_every=25", "optim.schedule=constant")
    Run.create(tmp_path / "killed", recipe)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.tiny"])
    # Once without a kill, so that the server children are forked from has imported everything.
    warm = context.Process(target=tiny.quiet)
    warm.start()
    warm.join()
    clock = random.Random(seed)
    kills = 0
    while kills < 20:
        child = context.Process(target=tiny.go_on, args=(tmp_path / "killed",))
        child.start()
        child.join(clock.uniform(0.05, 2.0))
        assert child.exitcode is None, "a restart failed by itself"
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1
        acknowledged = [r["step"] for r in read_metrics(tmp_path / "killed" / "metrics.jsonl", "checkpoint")]
        newest = newest_good(tmp_path / "killed" / "checkpoints")
        assert (step_of(newest) if newest else 0) >= max(acknowledged, default=0)
    reached = step_of(newest) if newest else 0
    assert reached > 0, "no kill came after a checkpoint; the test showed nothing"
    # The rest of the run, and the same run in one go, from the checkpoint the last kill left.
    shorter = recipe_until(tmp_path / "killed", reached + 6)
    finish = context.Process(target=tiny.go_on, args=(tmp_path / "killed",))
    finish.start()
    finish.join(120)
    finish.kill()  # does nothing to one that has ended
    assert finish.exitcode == 0
    job.start(shorter, tmp_path / "whole", tiny.quiet())
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


def recipe_until(path: Path, steps: int):  # type: ignore[no-untyped-def]
    """Shorten the run in `path`: its rate is constant, so that its length changes no step."""
    from dataclasses import replace

    run = Run.open(path)
    recipe = run.recipe()
    recipe = replace(recipe, train=replace(recipe.train, steps=steps))
    run.write_recipe(recipe)
    return recipe


def test_sigterm_saves_and_ends_cleanly(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", tiny.recipe(tmp_path, "train.steps=100000", "train.save_every=0"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.tiny"])
    child = context.Process(target=tiny.go_on, args=(tmp_path / "run",))
    child.start()
    until = time.monotonic() + 60
    while len(losses(tmp_path / "run")) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGTERM)
    child.join(30)
    assert child.exitcode == 0
    newest = newest_good(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert step_of(newest) == losses(tmp_path / "run")[-1][0]
