"""QK-Clip inside a run: clipped after the step, recorded, cleared when a step is refused, resumed to the same bits."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moonlet.cli import job
from moonlet.config import recipe_from_dict
from moonlet.model.init import build
from moonlet.model.model import CausalLM
from moonlet.optim.qk_clip import attentions_of
from moonlet.train.checkpoint import newest_good
from moonlet.train.loop import Trainer
from moonlet.train.metrics import read_metrics
from moonlet.train.run import Run
from tests.train import tiny
from tests.train.tiny import batch, step

# Low enough that heads are clipped in most steps of the tiny run.
TAU = 0.02


@pytest.fixture
def model() -> CausalLM:
    return tiny.model()


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = newest_good(run / "checkpoints")
    assert newest is not None
    return load_file(newest / "model.safetensors") | load_file(newest / "state" / "optimizer.safetensors")


def largest(model: CausalLM, inputs: torch.Tensor) -> list[float]:
    """The first layer's exact largest logits, of the weights as they are."""
    twin = build(model.config)
    twin.load_state_dict(model.state_dict())
    found: list[float] = step(twin, [(inputs, inputs)], every_logit=True).logits["max_logits"][0]
    return found


def test_the_peaks_of_the_forward_are_clipped_after_the_optimizer_moved_the_weights(model: CausalLM) -> None:
    twin = build(model.config)
    twin.load_state_dict(model.state_dict())
    inputs, targets = batch(0)
    before = largest(model, inputs)
    result = step(model, [(inputs, targets)], qk_clip_tau=0.05)
    assert step(twin, [(inputs, targets)]).logits == {}
    assert result.logits["max_logits"][0] == pytest.approx(before, rel=1e-6)
    gamma = result.logits["gamma"][0]
    assert gamma == pytest.approx([min(1.0, 0.05 / s) for s in before])
    assert min(gamma) < 1
    # The twin took the same step without the clip; what lies between them is gamma.
    name = "model.layers.0.self_attn.kv_b_proj.weight"
    ratio = (model.state_dict()[name] / twin.state_dict()[name]).view(2, 16, -1)[:, :, 0]
    for h, g in enumerate(gamma):
        assert ratio[h].tolist() == pytest.approx([g**0.5] * 8 + [1.0] * 8, rel=1e-5)


def test_a_step_in_micro_batches_clips_as_one_batch(model: CausalLM) -> None:
    inputs, targets = batch(0)
    twin = build(model.config)
    twin.load_state_dict(model.state_dict())
    whole = step(model, [(inputs, targets)], qk_clip_tau=0.05)
    halves = step(twin, [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])], qk_clip_tau=0.05)
    assert halves.logits["gamma"][0] == pytest.approx(whole.logits["gamma"][0], rel=1e-5)


def test_a_refused_step_clips_nothing_and_leaves_no_peaks(model: CausalLM) -> None:
    handle = model.lm_head.weight.register_hook(lambda gradient: gradient * math.nan)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = step(model, [batch(0)], qk_clip_tau=1e-6)
    assert result.problem is not None
    assert result.logits == {}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for attention in attentions_of(model).values():
        assert attention.peaks is not None
        assert (attention.peaks.max_logits == -math.inf).all()
    handle.remove()
    quiet = torch.zeros(1, 1, dtype=torch.int64)  # one token
    expected = largest(model, quiet)
    assert step(model, [(quiet, quiet)], every_logit=True).logits["max_logits"][0] == pytest.approx(expected)


def test_a_run_is_resumed_with_the_clip_active_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.recipe(tmp_path, f"optim.qk_clip_tau={TAU}", "train.save_every=1", "train.eval_every=0")
    job.start(recipe, tmp_path / "straight", tiny.quiet())
    clipped = [r["clipped"] for r in read_metrics(tmp_path / "straight" / "metrics.jsonl", "train")]
    assert sum(n > 0 for n in clipped[5:]) >= 2
    original = Trainer._micro_batches

    class Cut(Exception):
        """Stands for a kill."""

    def cut_here(self: Trainer):  # type: ignore[no-untyped-def]
        for i, given in enumerate(original(self)):
            if self.progress.step == 5 and i == 1:
                raise Cut
            yield given

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_micro_batches", cut_here)
        with pytest.raises(Cut):
            job.start(recipe, tmp_path / "cut", tiny.quiet())
    job.go_on(Run.open(tmp_path / "cut"), tiny.quiet())
    left, right = weights(tmp_path / "straight"), weights(tmp_path / "cut")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    records = [list(read_metrics(tmp_path / run / "metrics.jsonl", "attention")) for run in ("straight", "cut")]
    assert records[0] == records[1]


def test_what_is_logged_changes_no_bit_of_the_run(tmp_path: Path) -> None:
    for name, more in (("some", "log.max_logits=false"), ("all", "log.max_logits=true")):
        recipe = tiny.recipe(tmp_path, "optim.qk_clip_tau=0.03", "train.steps=6", more)
        job.start(recipe, tmp_path / name, tiny.quiet())
    left, right = weights(tmp_path / "some"), weights(tmp_path / "all")
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_every_line_says_the_largest_logit_and_some_lines_every_head(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path, f"optim.qk_clip_tau={TAU}")
    file = job.start(recipe, tmp_path / "run", tiny.quiet()).run.metrics_file
    lines = list(read_metrics(file, "train"))
    assert all(("max_logit" in r) != ("max_logit_bound" in r) and r["clipped"] >= 0 for r in lines)
    records = {r["step"]: r for r in read_metrics(file, "attention")}
    assert list(records) == [5, 10, 12]
    for number, record in records.items():
        assert record["layers"] == [0, 1]
        assert [len(row) for row in record["max_logits"]] == [2, 2]
        assert record["logit_bound"] == [[None, None], [None, None]]  # these lines know all heads exactly
        line = lines[number - 1]
        assert max(map(max, record["max_logits"])) == pytest.approx(line["max_logit"], abs=1e-4)
        assert sum(record["clipped"]) == line["clipped"]
        for row, gammas in zip(record["max_logits"], record["gamma"], strict=True):
            assert gammas == pytest.approx([min(1.0, TAU / s) if s > 0 else 1.0 for s in row], rel=1e-2)


@pytest.mark.parametrize(
    ("overrides", "tau"),
    [
        ([], 100.0),
        (["optim.kind=muonclip", "optim.qk_clip_tau=30"], 30.0),
        (["optim.kind=muon"], None),
        (["optim.kind=adamw"], None),
        (["optim.kind=adamw", "optim.qk_clip_tau=30.5"], 30.5),
    ],
)
def test_muonclip_clips_at_the_published_threshold_and_others_where_asked(
    tmp_path: Path, overrides: list[str], tau: float | None
) -> None:
    recipe = tiny.recipe(tmp_path, *overrides)
    assert recipe.optim.clip_tau == tau
    assert recipe_from_dict(recipe.to_dict()).optim == recipe.optim


def test_without_a_clip_logits_are_recorded_only_when_asked_for(tmp_path: Path) -> None:
    for more, wanted in (("log.max_logits=false", 0), ("log.max_logits=true", 2)):
        recipe = tiny.recipe(
            tmp_path, "optim.kind=muon", "train.steps=2", "optim.warmup_steps=1", "train.eval_every=1", more
        )
        file = job.start(recipe, tmp_path / str(wanted), tiny.quiet()).run.metrics_file
        lines = list(read_metrics(file, "train"))
        assert sum("max_logit" in r for r in lines) == wanted
        assert len(list(read_metrics(file, "attention"))) == wanted
        assert all(r["clipped"] == 0 for r in lines if "clipped" in r)


@pytest.mark.parametrize("tau", ["0", "-3", "nan", "inf"])
def test_a_bad_threshold_is_one_line(tmp_path: Path, tau: str) -> None:
    with pytest.raises(ValueError, match=r"optim.qk_clip_tau is .*; it must be above 0 .*optim.kind=muon") as error:
        tiny.recipe(tmp_path, f"optim.qk_clip_tau={tau}")
    assert "\n" not in str(error.value)
