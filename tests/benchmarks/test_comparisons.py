"""The benchmarks that compare small runs: what they read off is right, and they go on where they stopped."""

from __future__ import annotations

import math
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from moonlet.config.sections import OptimSettings
from moonlet.model.init import build
from moonlet.model.rope import rotate
from moonlet.train.loop import Trainer

# Scripts find each other in their own folder, as they do when started.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import expert_balance
import muon_vs_adamw
import qk_clip
from small_runs import QUICK, Laboratory, Taken, merged

TINY = merged(QUICK, {"train": {"dtype": "float32", "threads": 1}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests: the data and the tokenizer are prepared once."""
    return tmp_path_factory.mktemp("benchmarks")


def taken(bits: float, steps: int = 10) -> Taken:
    """A run that ended at so many bits per byte."""
    return Taken({"train": {"steps": steps}}, [{"kind": "eval", "step": steps, "bits_per_byte": bits}], 1.0)


def test_the_crossing_is_read_off_over_the_logarithm_of_tokens() -> None:
    losses = {length: 1.0 - 0.3 * math.log(length) for length in (0.25, 0.5, 1.0)}
    for length in (0.3, 0.5, 0.9):
        assert muon_vs_adamw.crossing(losses, 1.0 - 0.3 * math.log(length)) == pytest.approx(length)


def test_a_crossing_outside_the_runs_is_not_guessed() -> None:
    losses = {0.5: 2.0, 1.0: 1.0}
    assert muon_vs_adamw.crossing(losses, 2.5) is None
    assert muon_vs_adamw.crossing(losses, 0.5) is None


def test_of_several_crossings_the_longest_counts() -> None:
    assert muon_vs_adamw.crossing({0.25: 2.0, 0.5: 0.9, 0.75: 1.1, 1.0: 0.9}, 1.0) > 0.75


def test_a_grid_grows_until_its_best_value_has_neighbours() -> None:
    asked: list[float] = []

    def take(lr: float) -> Taken:
        asked.append(lr)
        return taken(abs(math.log2(lr)))  # best at 1

    assert muon_vs_adamw.best(muon_vs_adamw.tune(take, [4.0, 8.0])) == 1.0
    assert asked == [4.0, 8.0, 2.0, 1.0, 0.5]


def test_runs_are_added_until_adamws_loss_lies_between_two() -> None:
    runs, length = muon_vs_adamw.reach(lambda length: taken(1.0 - math.log(length)), [0.8, 1.0], 1.0 - math.log(0.55))
    assert length == pytest.approx(0.55)
    assert min(runs) < 0.55 < max(runs)


def test_a_diverged_run_is_the_worst() -> None:
    assert Taken({"train": {"steps": 10}}, [{"kind": "eval", "step": 5, "bits_per_byte": 0.1}], 1.0).bits == math.inf


def test_a_finished_run_is_not_taken_again_and_a_torn_line_is_passed_over(folder: Path) -> None:
    lab = Laboratory(folder, "again.jsonl", TINY)
    first = lab.run({"train": {"steps": 2}, "optim": {"warmup_steps": 1}}, "first")
    with lab.file.open("a") as file:
        file.write('{"changes": {')
    again = Laboratory(folder, "again.jsonl", TINY)
    assert again.run({"train": {"steps": 2}, "optim": {"warmup_steps": 1}}, "again") == first
    again.run({"train": {"steps": 3}, "optim": {"warmup_steps": 1}}, "another")
    assert [run.changes["train"]["steps"] for run in again.runs()] == [2, 3]


def test_a_run_that_was_stopped_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Laboratory(folder, "stopped.jsonl", TINY)
    monkeypatch.setattr(Trainer, "train", lambda self: self.progress)
    with pytest.raises(SystemExit, match="start it again"):
        lab.run({"train": {"steps": 2}, "optim": {"warmup_steps": 1}}, "stopped")
    assert lab.runs() == []


def test_the_watched_logits_are_those_of_the_queries_and_keys(folder: Path) -> None:
    lab = Laboratory(folder, "logits.jsonl", TINY)
    model = build(lab.recipe({"train": {"steps": 1}}).model).train()
    tokens = torch.randint(0, 200, (3, 17), generator=torch.Generator().manual_seed(0))
    documents = (torch.arange(17) >= 9).long().expand(3, -1)
    seen: list[torch.Tensor] = []

    def plain(mla: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x, rotation = inputs[:2]
        q = mla.q_b_proj(mla.q_a_layernorm(mla.q_a_proj(x))).unflatten(-1, (mla.heads, -1))
        latent, shared = mla.kv_a_proj_with_mqa(x).split((mla.R, mla.P), -1)
        k = mla.kv_b_proj(mla.kv_a_layernorm(latent)).unflatten(-1, (mla.heads, -1))
        turned = rotate(q[..., mla.K :], rotation), rotate(shared[:, :, None], rotation)[:, :, 0]
        logits = torch.einsum("bthd,bshd->bhts", q[..., : mla.K], k[..., : mla.K])
        logits = (logits + torch.einsum("bthd,bsd->bhts", turned[0], turned[1])) * mla.scale
        # Tokens 0..8 and 9..16 are two documents: a block each below the diagonal.
        blocks = [logits[..., a:b, a:b] for a, b in ((0, 9), (9, 17))]
        seen.append(torch.stack([m[..., *torch.tril_indices(*m.shape[-2:])].amax((0, 2)) for m in blocks]).amax(0))

    with qk_clip.logits_of(model) as maxima:
        for layer in model.model.layers:
            layer.self_attn.register_forward_pre_hook(plain)
        model.loss(tokens, tokens, documents)
        torch.testing.assert_close(maxima, torch.stack(seen).detach())


def test_muon_against_adamw_runs_prints_and_draws(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    muon_vs_adamw.main(["--quick", "--steps", "8", "--seeds", "1", "--dtype", "float32", "--out", str(folder)])
    assert "tokens Muon needs" in capsys.readouterr().out
    assert (folder / "muon-vs-adamw.png").stat().st_size > 10_000


@pytest.mark.skipif("qk_clip_tau" not in {f.name for f in fields(OptimSettings)}, reason="this version has no QK-Clip")
def test_qk_clip_keeps_logits_down_prints_and_draws(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--lr", "0.2", "--tau", "0.5", "--dtype", "float32", "--out", str(folder)]
    qk_clip.main(arguments)
    assert "loss does not suffer" in capsys.readouterr().out
    assert (folder / "qk-clip.png").stat().st_size > 10_000
    free, clipped = (run.of("watched")[-1] for run in Laboratory(folder, "runs.jsonl", TINY).runs()[-2:])
    assert max(map(max, clipped["max_logit"])) < max(map(max, free["max_logit"]))


def test_expert_balance_runs_prints_and_draws(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expert_balance.main(["--quick", "--steps", "8", "--dtype", "float32", "--out", str(folder)])
    assert "no expert is dead" in capsys.readouterr().out
    assert (folder / "expert-balance.png").stat().st_size > 10_000
