"""One step: what is not finite changes nothing; micro-batches add up; evaluation moves no balance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moonlet.cli import job, material
from moonlet.config.sections import OptimSettings
from moonlet.model.init import build
from moonlet.model.model import CausalLM
from moonlet.optim.balance import balance_step, clear_loads, routers_of, sequence_loss
from moonlet.optim.optimizer import build_optimizer
from moonlet.train.checkpoint import newest_good, step_of
from moonlet.train.loop import TrainingStopped
from moonlet.train.metrics import read_metrics
from moonlet.train.run import Run
from tests.train import tiny
from tests.train.tiny import batch, step


@pytest.fixture
def model() -> CausalLM:
    return tiny.model()


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_a_gradient_that_is_not_finite_skips_the_step_and_is_named(model: CausalLM, bad: str) -> None:
    name = "model.layers.1.mlp.experts.down_proj"
    parameter = dict(model.named_parameters())[name]
    parameter.register_hook(lambda g: g.index_fill(0, torch.tensor([1]), float(bad)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = build_optimizer(model, OptimSettings())
    result = step(model, [batch(0)], optimizer)
    assert result.problem is not None
    assert name in result.problem
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert optimizer.state() == {}
    assert all(p.grad is None for p in model.parameters())
    assert all(int(r.load.sum()) == 0 for r in routers_of(model))


def test_a_loss_that_is_not_finite_skips_the_step(model: CausalLM) -> None:
    with torch.no_grad():
        model.lm_head.weight[3, 0] = float("inf")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert step(model, [batch(0)]).problem is not None
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_micro_batches_add_up_to_the_batch(model: CausalLM) -> None:
    inputs, targets = batch(0)
    twin = build(model.config)
    twin.load_state_dict(model.state_dict())
    whole = step(model, [(inputs, targets)])
    halves = step(twin, [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])])
    assert halves.loss == pytest.approx(whole.loss, rel=1e-5)
    assert halves.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
    assert halves.balance == whole.balance


def test_clipping_bounds_the_gradient_the_optimizer_sees(model: CausalLM) -> None:
    seen: list[float] = []

    class Spy:
        def step(self, lr: float) -> None:
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            seen.append(float(torch.nn.utils.get_total_norm(gradients)))

        def zero_grad(self) -> None:
            model.zero_grad()

    result = step(model, [batch(0)], Spy(), grad_clip=0.01)
    assert result.grad_norm > 0.01
    assert seen[0] == pytest.approx(0.01, rel=1e-3)


def test_the_balance_bias_moves_against_the_load_and_counts_training_only(model: CausalLM) -> None:
    router = routers_of(model)[0]
    router.load.copy_(torch.tensor([9, 1, 5, 5]))
    balance_step(model, 0.1)
    assert router.e_score_correction_bias.tolist() == pytest.approx([-0.1, 0.1, 0.0, 0.0])
    assert int(router.load.sum()) == 0
    model.eval()
    model(batch(0)[0])
    assert int(router.load.sum()) == 0
    model.train()
    model(batch(0)[0])
    assert int(router.load.sum()) == 4 * 16 * model.config.num_experts_per_tok


def test_the_sequence_loss_moves_the_weights_and_stays_out_of_the_loss(model: CausalLM) -> None:
    inputs, targets = batch(0)
    gradients = []

    class Spy:
        def step(self, lr: float) -> None:
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

        def zero_grad(self) -> None:
            model.zero_grad()

    still = {"grad_clip": 0.0, "bias_update_speed": 0.0}
    plain = step(model, [(inputs, targets)], Spy(), **still)
    halves = [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])]
    for batches in ([(inputs, targets)], halves):
        result = step(model, batches, Spy(), aux_loss_alpha=0.5, **still)
        assert result.loss == pytest.approx(plain.loss, rel=1e-6)
        with sequence_loss(model, 0.5) as take:
            loss = model.loss(inputs, targets)
            aux = take()
        assert aux is not None
        assert result.aux_loss == pytest.approx(aux.item(), rel=1e-5)
        (loss + aux).backward()
        expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        for name, gradient in gradients[-1].items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)
        model.zero_grad()
        clear_loads(model)
    gate = "model.layers.1.mlp.gate.weight"
    assert not torch.allclose(gradients[0][gate], gradients[1][gate], rtol=1e-2)
    assert plain.aux_loss is None


def test_weight_decay_and_gradients_leave_the_balance_bias_alone(model: CausalLM) -> None:
    router = routers_of(model)[0]
    router.e_score_correction_bias.copy_(torch.tensor([0.5, -0.25, 0.0, 1.0]))
    for kind in ("muon", "adamw"):
        weight = router.weight.clone()
        optimizer = build_optimizer(model, OptimSettings(kind=kind, weight_decay=0.5))
        step(model, [batch(0)], optimizer, bias_update_speed=0.0, aux_loss_alpha=0.1)
        assert router.e_score_correction_bias.tolist() == [0.5, -0.25, 0.0, 1.0]
        assert not torch.equal(router.weight, weight)


def test_three_bad_steps_in_a_row_stop_the_run_with_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    original = CausalLM.loss

    def loss(self: CausalLM, *batch: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        # Steps 3, 6, 7 and 8 are bad: one alone is survived, three in a row are not. Two micro-batches a step.
        bad = (calls + 1) // 2 in (3, 6, 7, 8)
        return original(self, *batch) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(CausalLM, "loss", loss)
    with pytest.raises(TrainingStopped, match=r"3 steps in a row.*step 6"):
        job.start(tiny.recipe(tmp_path, "train.steps=20"), tmp_path / "run", tiny.quiet())
    assert [r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl", "skip")] == [3, 6, 7, 8]
    newest = newest_good(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert step_of(newest) == 6


def test_two_trainers_cannot_share_a_run(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", tiny.recipe(tmp_path))
    with run.lock(), pytest.raises(ValueError, match="being trained by another process"):
        job.go_on(Run.open(tmp_path / "run"), tiny.quiet())


def test_a_folder_that_holds_something_is_never_written_into(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="already exists"):
        job.start(tiny.recipe(tmp_path), tmp_path / "run", tiny.quiet())
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_checkpoint_is_saved_before_its_step_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("evaluation broke")

    monkeypatch.setattr(material, "validation_bits", crash)
    with pytest.raises(RuntimeError, match="evaluation broke"):
        job.start(tiny.recipe(tmp_path, "train.eval_every=6", "train.save_every=6"), tmp_path / "run", tiny.quiet())
    newest = newest_good(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert step_of(newest) == 6


def test_a_time_budget_ends_the_run_with_its_rate_at_the_end_of_its_fall(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path, "train.steps=0", "train.minutes=0.03", "train.save_every=0", "train.eval_every=0")
    outcome = job.start(recipe, tmp_path / "run", tiny.quiet())
    assert outcome.bits is not None
    assert outcome.progress.total == outcome.progress.step
    rates = [r["lr"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl", "train")]
    assert max(rates) == recipe.optim.lr
    assert rates[-1] < 0.2 * max(rates)


def test_the_run_folder_tells_what_made_it(tmp_path: Path) -> None:
    with tiny.drawn():
        job.start(tiny.recipe(tmp_path), tmp_path / "run", tiny.quiet())
    run = Run.open(tmp_path / "run")
    facts = run.facts()
    assert {"git", "versions", "machine", "compute_dtype", "python"} <= facts.keys()
    assert run.recipe().model.vocab_size == 272  # 256 bytes and 16 special slots
    assert run.plot_file.read_bytes().startswith(b"\x89PNG")
    assert (run.model / "config.json").is_file()
    assert [r["step"] for r in read_metrics(run.metrics_file, "eval")] == [5, 10, 12]
