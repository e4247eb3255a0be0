"""Exact accuracy: of an oracle, of a guesser, of a model that learns, and as `moonlet eval` shows it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor
from typer.testing import CliRunner

import moonlet
from moonlet.cli import job
from moonlet.cli.main import app
from moonlet.cli.report import print_outcome
from moonlet.config import Recipe, recipe_from_dict
from moonlet.data.recall import NO_TARGET, RecallLoader, RecallTask
from moonlet.eval.recall import RecallScores, measure_recall
from moonlet.eval.report import Request, evaluate_folder
from moonlet.model.init import build
from moonlet.plot.history import read_history
from moonlet.train.estimate import plan_run
from moonlet.train.metrics import read_metrics
from moonlet.train.run import Run
from tests.train import tiny

TASKS = [
    RecallTask("mqar", (2, 6), 8),
    RecallTask("mqar", (2, 6), 8, gaps=True),
    RecallTask("palindrome", (3, 9), 8),
    RecallTask("stack", (4, 9), 8, 3),
]
T = 30
MODEL = {
    "hidden_size": 32, "num_hidden_layers": 2, "first_k_dense_replace": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "intermediate_size": 32,
}  # fmt: skip


def scores(answer: object, task: RecallTask, sequences: int = 400) -> RecallScores:
    return measure_recall(answer, task, seq_len=T, sequences=sequences, seed=0)


class Oracle:
    """Knows the held-out sequences by heart, for it draws them itself."""

    def __init__(self, task: RecallTask) -> None:
        inputs, targets = RecallLoader(task, seq_len=T, batch_size=400, seed=0, split="valid").batch(0)
        self.known = {row.tobytes(): torch.from_numpy(answers) for row, answers in zip(inputs, targets, strict=True)}
        self.vocabulary = task.tokenizer().vocab_size

    def __call__(self, inputs: Tensor, asked: Tensor) -> Tensor:
        targets = torch.stack([self.known[row.numpy().tobytes()] for row in inputs])
        return torch.nn.functional.one_hot(targets[asked], self.vocabulary) * 100.0


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_an_oracle_is_always_right(task: RecallTask) -> None:
    found = scores(Oracle(task), task)
    assert (found.all.accuracy, found.all.whole) == (1.0, 1.0)
    assert found.all.loss < 1e-6
    assert found.all.sequences == 400
    assert [part.sequences for part in found.sizes.values()] == [200, 200]


def test_one_wrong_answer_makes_a_sequence_wrong() -> None:
    task = RecallTask("palindrome", (3, 9), 64)
    oracle = Oracle(task)
    assert len(oracle.known) == 400
    for row in list(oracle.known)[:100]:
        targets = oracle.known[row].clone()
        targets[targets != NO_TARGET] = torch.cat((torch.tensor([0]), targets[targets != NO_TARGET][1:]))
        oracle.known[row] = targets
    found = scores(oracle, task)
    assert found.all.whole == 0.75
    # 50 of 200 sequences of 3 words, and of 9.
    assert found.sizes[3].accuracy == 1 - 50 / 600
    assert found.sizes[9].accuracy == 1 - 50 / 1800
    assert found.all.accuracy == 1 - 100 / 2400


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_guesser_is_right_by_chance(task: RecallTask) -> None:
    tokenizer, generator = task.tokenizer(), torch.Generator().manual_seed(0)
    first = 17 + (8 if task.kind == "mqar" else 0)

    def guess(inputs: Tensor, asked: Tensor) -> Tensor:
        words = torch.randint(first, first + 8, (int(asked.sum()),), generator=generator)
        return torch.nn.functional.one_hot(words, tokenizer.vocab_size).float()

    found = scores(guess, task, 1000).all
    error = (task.chance * (1 - task.chance) / found.answers) ** 0.5
    assert abs(found.accuracy - task.chance) < 4 * error


def test_what_is_not_asked_is_not_seen_by_the_loss() -> None:
    """A model's loss on a batch is that of its answers alone."""
    task = TASKS[0]
    recipe = small("mqar")
    model = build(recipe.model.replace(vocab_size=task.tokenizer().vocab_size))
    batch = RecallLoader(task, seq_len=T, batch_size=60, seed=0, split="valid").batch(0)
    inputs, targets = map(torch.from_numpy, batch)
    found = scores(model, task, 60).all
    assert found.loss == pytest.approx(model.loss(inputs, targets).item(), rel=1e-4)
    assert found.answers == int((targets != NO_TARGET).sum())


def small(kind: str, *overrides: str) -> Recipe:
    table = {
        "name": "tiny",
        "model": MODEL,
        "data": {"kind": kind, "sizes": [2, 4], "words": 8, "held_out": 60},
        "train": {"steps": 12, "seq_len": 20, "batch_size": 8, "eval_every": 4, "save_every": 4, "dtype": "float32",
                  "sample_tokens": 2, "sample_every": 0},
        "prompts": ["k1 v2 k3 v4 ? k3"],
    }  # fmt: skip
    return recipe_from_dict(table, overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> job.Outcome:
    """A run of palindromes of two words, long enough to learn them, in seconds."""
    out = tmp_path_factory.mktemp("recall") / "run"
    more = ("data.sizes=[1,2]", "data.words=4", "train.steps=120", "train.batch_size=32", "optim.lr=1e-2",
            "train.seq_len=6", "train.eval_every=40")  # fmt: skip
    with tiny.drawn():
        return job.start(small("palindrome", *more), out, Console(quiet=True))


def test_a_model_learns_a_task_and_its_figures_agree(run: job.Outcome) -> None:
    assert run.finished
    assert run.bits is None
    assert run.recall is not None
    assert run.recall.all.accuracy > 0.9
    evals = list(read_metrics(run.run.metrics_file, "eval"))
    assert [line["step"] for line in evals] == [40, 80, 120]
    assert evals[-1]["accuracy"] == run.recall.all.accuracy
    assert {"accuracy_1", "accuracy_2", "sequences_right", "loss"} <= set(evals[-1])
    report = evaluate_folder(run.run.path)
    assert report.recall == run.recall
    assert run.run.plot_file.stat().st_size > 10_000


def test_other_held_out_sequences_are_drawn_on_request(run: job.Outcome) -> None:
    again, other = (evaluate_folder(run.run.path, Request(seed=seed)).recall for seed in (0, 1))
    assert again == run.recall
    assert other is not None
    assert other.all.loss != run.recall.all.loss
    assert other.all.accuracy > 0.9


def test_the_command_line_shows_accuracy_alone_and_side_by_side(run: job.Outcome, tmp_path: Path) -> None:
    path, runner = str(run.run.path), CliRunner()
    shown = runner.invoke(app, ["eval", path]).output
    assert "palindrome (synthetic), 1 2 words, held out" in shown
    assert "by chance" in shown
    assert "25.0%" in shown
    both = runner.invoke(app, ["eval", path, path, "--json", str(tmp_path / "out.json")]).output
    assert "answers recalled" in both
    assert "bits per byte" not in both
    kept = json.loads((run.run.path / "eval.json").read_text())
    assert kept["recall"]["accuracy"] == run.recall.all.accuracy
    assert kept["recall"]["sizes"]["2"]["answers"] == 60
    assert "text" not in kept


@pytest.mark.parametrize("option", ["questions", "by_position", "packed"])
def test_what_needs_a_text_is_refused(run: job.Outcome, option: str) -> None:
    with pytest.raises(ValueError, match=f"leave out --{option.replace('_', '-')}, or give --data FILE"):
        evaluate_folder(run.run.path, Request(**{option: True}))


def test_the_outcome_is_said_in_a_line(run: job.Outcome) -> None:
    text = io.StringIO()
    print_outcome(run, Console(file=text, width=200))
    assert f"{run.recall.all.accuracy:.1%} of 90 answers right (by chance 25.0%)" in text.getvalue()


def test_a_trained_model_answers_in_words(run: job.Outcome) -> None:
    model, tokenizer = moonlet.load(run.run.path)
    right = 0
    for a in range(4):
        for b in range(4):
            text = moonlet.generate(model, tokenizer, f"w{a} w{b} |", max_new_tokens=2, temperature=0.0)
            right += text == f"w{a} w{b} | w{b} w{a}"
    assert right >= 14


def test_curves_are_drawn_without_bits_per_byte(run: job.Outcome, tmp_path: Path) -> None:
    history = read_history(run.run.path)
    assert history.title.endswith("palindrome (synthetic), 1 2 words")
    out = CliRunner().invoke(app, ["plot", str(run.run.path), "--out", str(tmp_path)])
    assert out.exit_code == 0, out.output
    assert (tmp_path / "loss.png").is_file()


@pytest.mark.parametrize("kind", ["mqar", "stack"])
def test_a_killed_run_goes_on_with_the_same_batches_and_ends_in_the_same_bits(kind: str, tmp_path: Path) -> None:
    steady = ("optim.schedule=constant", "optim.warmup_steps=2")
    whole = job.start(small(kind, *steady), tmp_path / "whole", Console(quiet=True))
    part = job.start(small(kind, *steady, "train.steps=8"), tmp_path / "part", Console(quiet=True))
    # Made longer, it stands where a run of the full length stood when it was stopped.
    part.run.write_recipe(small(kind, *steady))
    resumed = job.go_on(Run.open(tmp_path / "part"), Console(quiet=True))
    assert resumed.recall == whole.recall
    assert resumed.recall != part.recall
    ends = [(r.run.model / "model.safetensors").read_bytes() for r in (whole, resumed)]
    assert ends[0] == ends[1]


def test_fine_tuning_wants_the_same_words(run: job.Outcome, tmp_path: Path) -> None:
    init = f"train.init={run.run.path}"
    table = {"data": {"kind": "palindrome", "sizes": [3], "words": 4, "held_out": 8},
             "train": {"steps": 1, "seq_len": 8, "batch_size": 4, "dtype": "float32"}, "prompts": []}  # fmt: skip
    assert job.start(recipe_from_dict(table, [init]), tmp_path / "same", Console(quiet=True)).recall is not None
    with pytest.raises(ValueError, match="another vocabulary"):
        job.start(recipe_from_dict(table, [init, "data.words=5"]), tmp_path / "other", Console(quiet=True))


def test_a_plan_knows_the_vocabulary_and_no_epochs(tmp_path: Path) -> None:
    plan = plan_run(small("mqar"), tmp_path / "run")
    assert plan.epochs is None
    assert plan.parameters == sum(
        p.numel() for p in build(small("mqar").model.replace(vocab_size=17 + 17)).parameters()
    )
