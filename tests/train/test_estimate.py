"""A plan says what the run will be, and leaves nothing behind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from moonlet.cli import job
from moonlet.cli.train import train
from moonlet.config import Recipe, recipe_from_dict, toml
from moonlet.model.count import count, shapes
from moonlet.model.flops import flops_per_token
from moonlet.model.init import build
from moonlet.optim.optimizer import build_optimizer
from moonlet.text import ByteTokenizer
from moonlet.train import estimate
from moonlet.train.estimate import Plan, Speed, muon_flops, plan_run, step_speed, time_step
from moonlet.train.step import train_step

CPU = torch.device("cpu")
MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
         "intermediate_size": 48, "moe_intermediate_size": 24}  # fmt: skip


def recipe_of(**sections: Any) -> Recipe:
    base: dict[str, dict[str, Any]] = {
        "model": MODEL,
        "tokenizer": {"kind": "byte"},
        "data": {"megabytes": 0.05, "valid_stories": 3},
        "train": {"steps": 10, "seq_len": 64, "batch_size": 4, "dtype": "float32"},
    }
    for name, values in sections.items():
        base[name] = base.get(name, {}) | values
    return recipe_from_dict(base)


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_PROBE", 0.05)
    monkeypatch.setattr(estimate, "_PATIENCE", 0.3)


def test_a_plan_counts_what_the_run_will_be(tmp_path: Path) -> None:
    recipe = recipe_of()
    plan = plan_run(recipe, tmp_path / "runs" / "x")
    config = recipe.model.replace(vocab_size=ByteTokenizer().vocab_size)
    assert plan.parameters == count(config).total
    assert plan.flops == flops_per_token(config, 64)
    assert (plan.step_tokens, plan.steps, plan.tokens) == (256, 10, 2560)
    # Bytes are tokens; each story begins with one of its own.
    assert plan.text_is_exact
    assert plan.text_tokens == pytest.approx(50_000, rel=0.02)
    assert plan.epochs == pytest.approx(2560 / 50_000, rel=0.02)
    assert plan.fits
    assert plan.seconds == pytest.approx(10 * plan.speed.step_seconds)
    assert list(tmp_path.iterdir()) == []


def test_a_time_budget_is_turned_into_steps(tmp_path: Path) -> None:
    plan = plan_run(recipe_of(train={"steps": 0, "minutes": 2.0}), tmp_path)
    assert plan.steps == pytest.approx(120 / plan.speed.step_seconds, rel=0.01, abs=1)


def test_a_checkpoint_has_the_planned_size(tmp_path: Path) -> None:
    from moonlet.hub.write import write_model
    from moonlet.train.state import Progress, write_state

    recipe = recipe_of()
    plan = plan_run(recipe, tmp_path)
    model = build(recipe.model.replace(vocab_size=ByteTokenizer().vocab_size))
    optimizer = build_optimizer(model, recipe.optim)
    model.loss(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64)).backward()
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    optimizer.step(1e-3)
    write_model(model, tmp_path)
    write_state(tmp_path, Progress(), {}, optimizer)
    written = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
    # Names and shapes in the files' headers weigh more in a model this small.
    assert plan.checkpoint_bytes == pytest.approx(written, rel=0.15)


def test_a_step_takes_about_as_long_as_measured() -> None:
    recipe = recipe_of(train={"batch_size": 8})
    forward, optimizer = time_step(recipe, CPU, torch.float32, 4)
    model = build(recipe.model)
    real = build_optimizer(model, recipe.optim)
    ids = torch.randint(recipe.model.vocab_size, (4, 64))
    seconds = []
    for _ in range(8):
        begin = time.perf_counter()
        train_step(model, real, [(ids, ids)] * 2, count=2, lr=1e-4, grad_clip=1.0, bias_update_speed=0.0, bos_id=0)
        seconds.append(time.perf_counter() - begin)
    # Wide, for machines that do other things at the same time.
    assert 0.25 < (2 * forward + optimizer) / median(seconds[2:]) < 4


def test_what_is_too_large_to_time_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(optim={"kind": "adamw"})
    tensors = shapes(recipe.model)
    flops = flops_per_token(recipe.model, 64)
    monkeypatch.setattr(estimate, "time_step", lambda *_: pytest.fail("it was timed"))
    speed = step_speed(recipe, CPU, torch.float32, flops, tensors, None)
    assert not speed.measured
    assert speed.step_seconds == pytest.approx(flops.training * 256 / (speed.rate * speed.utilisation))


def test_where_only_one_sequence_fits_it_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of()
    monkeypatch.setattr(estimate, "time_step", lambda *_: (0.5, 0.25))
    speed = step_speed(recipe, CPU, torch.float32, flops_per_token(recipe.model, 64), shapes(recipe.model), 1)
    assert (speed.measured, speed.sequences) == (True, 1)
    assert speed.step_seconds == 4 * 0.5 + 0.25


def test_orthogonalising_is_counted_by_its_products() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from moonlet.ops.newton_schulz import newton_schulz

    with FlopCounterMode(display=False) as counter:
        newton_schulz(torch.ones(3, 10, 6))
    assert muon_flops({"model.layers.0.self_attn.o_proj.weight": torch.Size((10, 6))}) * 3 == counter.get_total_flops()
    assert (
        muon_flops({"model.layers.1.mlp.experts.gate_up_proj": torch.Size((3, 20, 6))}) == 2 * counter.get_total_flops()
    )


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(toml.dumps(recipe_of().to_dict()), encoding="utf-8")
    return path


def test_dry_run_prints_and_makes_no_folder(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    train(recipe_file, dry_run=True)
    text = capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]
    for phrase in ("nothing was started", "it fits", "2.56K in 10 steps", "tokens a second", "checkpoints of"):
        assert phrase in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_dry_run_as_json(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(recipe_file, ["train.batch_size=2"], out=tmp_path / "x", dry_run=True, as_json=True)
    data = json.loads(capsys.readouterr().out)
    assert (data["step_tokens"], data["fits"]) == (128, True)
    assert data["memory"]["total"] > data["memory"]["weights"]
    assert not (tmp_path / "x").exists()


def test_a_model_without_room_is_said_not_to_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moonlet.cli.plan import plan_rows

    monkeypatch.setattr(estimate, "_available", lambda device: 2**20)
    plan: Plan = plan_run(recipe_of(), tmp_path)
    assert plan.fits is False
    assert isinstance(plan.speed, Speed)
    assert not plan.speed.measured
    rows = dict(plan_rows(plan))
    assert "does not fit" in rows["memory"]


def test_a_run_without_room_is_refused_before_its_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "_available", lambda device: 2**20)
    with pytest.raises(ValueError, match=r"GiB are free on cpu"):
        job.pretrain(recipe_of(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_json_without_dry_run_is_refused(recipe_file: Path) -> None:
    with pytest.raises(ValueError, match="--dry-run"):
        train(recipe_file, as_json=True)
