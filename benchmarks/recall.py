"""What token mixers remember: accuracy on synthetic recall of KDA, of MLA with and without rope, and of the hybrid.

    python benchmarks/recall.py --out runs/recall                  # one thread; a second start goes on
    python benchmarks/recall.py --quick --out /tmp/trial           # the same code in seconds
    python benchmarks/recall.py --tasks mqar --out runs/recall     # one table of the three

Networks of two dense layers and equal width, which differ in what mixes tokens alone:

    KDA         KDA, KDA           two heads, each one matrix of 64 x 64, whatever the length
    MLA         MLA, MLA           with rope; a latent for each token
    MLA, NoPE   MLA, MLA           without position
    hybrid      KDA, MLA           the second without position, as in Kimi Linear

Each is trained on all sizes of a task mixed evenly, sequences drawn afresh, loss on the answers alone, once at every
learning rate; the best rate by accuracy over all sizes is then taken with more seeds (first weights and sequences).
Accuracy is exact and over held-out sequences, the same ones for all. After Kimi Linear (arXiv 2510.26692, section 5.1)
and Zoology (arXiv 2312.04927), which train far longer: what fails here has not learnt the task in so many steps, which
does not say that it could not. MLA learns mqar of `--sizes 4 8 16` in 240 steps, and of 4 to 64 pairs not in 600.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from small_runs import ANY_MODEL, Laboratory, Taken, add_options, merged, table

from moonlet.config import Recipe
from moonlet.config.recall import UNITS, recall_length
from moonlet.data.loader import Batches
from moonlet.data.recall import RecallLoader, RecallTask
from moonlet.eval.recall import measure_recall
from moonlet.model.count import count
from moonlet.model.model import CausalLM
from moonlet.plot.canvas import FLOOR, MUTED, PALETTE, TRAIN, VALID, label, legend, margins, new_figure, save
from moonlet.text.tokenizer import Tokenizer

# kda_layers are counted from one.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "KDA": {"kda_layers": [1, 2], "nope": True},
    "MLA": {"kda_layers": [], "nope": False},
    "MLA, NoPE": {"kda_layers": [], "nope": True},
    "hybrid": {"kda_layers": [1], "nope": True},
}
COLOURS = dict(zip(ARCHITECTURES, (TRAIN, VALID, PALETTE[6], FLOOR), strict=True))
MARKS = dict(zip(ARCHITECTURES, "osv^", strict=True))
TASKS: dict[str, dict[str, Any]] = {
    "mqar": {"sizes": [4, 8, 16, 32, 64], "words": 64},
    "palindrome": {"sizes": [4, 8, 16, 32, 64], "words": 16},
    "stack": {"sizes": [4, 8, 16, 32, 64], "words": 16, "stacks": 8},
}
QUICK_TASKS: dict[str, dict[str, Any]] = {
    "mqar": {"sizes": [2, 4], "words": 4, "held_out": 16},
    "palindrome": {"sizes": [2, 4], "words": 4, "held_out": 16},
    "stack": {"sizes": [2, 4], "words": 4, "stacks": 2, "held_out": 16},
}


class RecallLaboratory(Laboratory):
    """Small runs whose data are a recall task, another one for each if they ask for it."""

    common = ANY_MODEL

    def tokenizer_of(self, recipe: Recipe) -> Tokenizer:
        return RecallTask.of(recipe.data).tokenizer()

    def loader_of(self, recipe: Recipe) -> Batches:
        t = recipe.train
        return RecallLoader(RecallTask.of(recipe.data), seq_len=t.seq_len, batch_size=t.batch_size, seed=t.seed)

    def evaluate(self, model: CausalLM, recipe: Recipe) -> dict[str, float]:
        """All held-out sequences, the same for every run."""
        task, sequences = RecallTask.of(recipe.data), recipe.data.held_out
        return measure_recall(model, task, seq_len=recipe.train.seq_len, sequences=sequences, seed=0).figures()

    def outcome(self, taken: Taken) -> str:
        return f"{accuracy(taken):.1%} of answers right"


@dataclass(frozen=True)
class Found:
    """What one task came to: runs by architecture and learning rate (seed 0), and by architecture and seed."""

    task: str
    sizes: list[int]
    chance: float
    parameters: dict[str, int]
    rates: dict[str, dict[float, Taken]]
    seeds: dict[str, list[Taken]]

    def best(self, name: str) -> float:
        """The learning rate of the highest accuracy at seed 0, the lower one of equals."""
        return max(sorted(self.rates[name]), key=lambda lr: accuracy(self.rates[name][lr]))

    def by_size(self, name: str) -> list[list[float]]:
        """Accuracy of each size, of each seed."""
        return [[accuracy(run, size) for run in self.seeds[name]] for size in self.sizes]


def accuracy(run: Taken, size: int | None = None) -> float:
    """Share of held-out answers that are right; NaN when the run diverged."""
    # The mean over sizes, so that long sequences, which ask more, do not count for more.
    sizes = [f"accuracy_{n}" for n in run.changes["data"]["sizes"]]
    names = sizes if size is None else [f"accuracy_{size}"]
    return statistics.fmean(run.final.get(name, float("nan")) for name in names) if run.final else -1.0


def model_of(name: str, hidden: int, heads: int) -> dict[str, Any]:
    """The [model] section of an architecture: two dense layers, without experts."""
    kind, width = ARCHITECTURES[name], hidden // heads
    linear: dict[str, Any] = {"kda_layers": kind["kda_layers"]}
    if kind["kda_layers"]:
        linear |= {"head_dim": width, "num_heads": heads, "short_conv_kernel_size": 4}
    return {
        "preset": "linear-nano",
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "first_k_dense_replace": 2,
        "n_routed_experts": 0,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "qk_nope_head_dim": width,
        "qk_rope_head_dim": width // 2,
        "v_head_dim": width,
        "kv_lora_rank": width,
        "mla_use_nope": kind["nope"],
        "linear_attn_config": linear,
    }


def measure(lab: RecallLaboratory, task: str, given: argparse.Namespace) -> Found:
    """Every architecture on one task: all learning rates, then more seeds at the best."""
    data = (QUICK_TASKS if given.quick else TASKS)[task] | {"kind": task}
    if given.sizes:
        data["sizes"] = given.sizes
    length = recall_length(task, max(data["sizes"]))
    rates: dict[str, dict[float, Taken]] = {}
    seeds: dict[str, list[Taken]] = {}
    parameters = {}

    def take(name: str, lr: float, seed: int) -> Taken:
        train = {"steps": given.steps, "seq_len": length, "seed": seed, "eval_every": max(1, given.steps // 5)}
        model = model_of(name, given.hidden, given.heads)
        changes = {"model": model, "data": data, "train": train, "optim": {"lr": lr}}
        parameters[name] = count(lab.recipe(changes).model).total
        return lab.run(changes, f"{task}, {name} at {lr:g}, seed {seed}")

    for name in given.architectures:
        rates[name] = {lr: take(name, lr, 0) for lr in given.lrs}
    found = Found(task, data["sizes"], 1 / data["words"], parameters, rates, seeds)
    for seed in range(given.seeds):
        for name in given.architectures:
            seeds.setdefault(name, []).append(take(name, found.best(name), seed))
    return found


def report(found: Found) -> str:
    """The two tables of a task."""
    unit = UNITS[found.task]
    rows = [["", "parameters", *(f"{size} {unit}" for size in found.sizes), "mean"]]
    for name, runs in found.seeds.items():
        cells = [_spread(values) for values in found.by_size(name)]
        rows.append([name, f"{found.parameters[name]:,}", *cells, _spread([accuracy(run) for run in runs])])
    tried = [["", "learning rate: mean accuracy over sizes (seed 0)", "best"]]
    for name, grid in found.rates.items():
        tried.append(
            [name, ", ".join(f"{lr:g}: {accuracy(grid[lr]):.1%}" for lr in sorted(grid)), f"{found.best(name):g}"]
        )
    count = len(next(iter(found.seeds.values())))
    seconds = {name: statistics.median(run.seconds for run in runs) for name, runs in found.seeds.items()}
    took = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    return "\n\n".join(
        (
            f"### {found.task}",
            f"Held-out answers right, mean of {count} seeds (lowest - highest); by chance {found.chance:.1%}.",
            table(rows),
            table(tried),
            f"A run takes, in the median: {took}.",
        )
    )


def _spread(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    mean = f"{statistics.fmean(values):.1%}"
    return mean if high - low < 5e-4 else f"{mean} ({low:.1%} - {high:.1%})"


def draw(found: Sequence[Found], picture: Path) -> None:
    """Accuracy by size, a panel a task, a curve an architecture; bands from the lowest to the highest seed."""
    width = 4.4 * len(found) + 0.6
    figure = new_figure(width, 3.9, "Synthetic recall: held-out answers that are right, two layers")
    axes = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    margins(figure, left=0.6, right=0.2, wspace=0.08)
    for panel, task in zip(axes, found, strict=True):
        label(panel, f"{task.task} (synthetic)", UNITS[task.task])
        places = range(len(task.sizes))
        for name in task.seeds:
            values = task.by_size(name)
            means = [statistics.fmean(column) for column in values]
            low, high = [min(column) for column in values], [max(column) for column in values]
            panel.fill_between(places, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
            panel.plot(places, means, color=COLOURS[name], marker=MARKS[name], markersize=5, label=name)
        panel.axhline(task.chance, color=MUTED, linewidth=1, linestyle=":")
        panel.set_xticks(places, [str(size) for size in task.sizes])
        panel.set_ylim(-0.03, 1.05)
    legend(axes[0])
    save(figure, picture)


def main(arguments: Sequence[str] | None = None) -> None:
    """Take the runs, print, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser, "runs/recall", 600)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--sizes", type=int, nargs="+", help="pairs, words or operations, instead of 4 to 64")
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--lrs", type=float, nargs="+", default=[5e-3, 1e-2], help="all are tried at seed 0")
    parser.add_argument("--optimizer", default="muonclip", choices=("adamw", "muon", "muonclip"))
    parser.add_argument("--seeds", type=int, default=3, help="seeds at the best learning rate")
    parser.add_argument("--hidden", type=int, default=128, help="hidden_size")
    parser.add_argument("--heads", type=int, default=2, help="of KDA and of MLA, hidden / heads wide")
    parser.add_argument("--batch", type=int, default=64, help="sequences a step")
    given = parser.parse_args(arguments)
    if given.quick:
        given.steps, given.seeds, given.lrs = min(given.steps, 6), min(given.seeds, 2), given.lrs[:2]
        given.hidden, given.batch = 16, 8
    lab = RecallLaboratory(given.out, "runs.jsonl", _base(given))
    found = []
    for task in given.tasks:
        found.append(measure(lab, task, given))
        print(report(found[-1]), end="\n\n", flush=True)
    picture = given.out / "recall.png"
    draw(found, picture)
    print(f"written: {picture}")


def _base(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What all runs have in common."""
    import torch

    torch.set_num_threads(given.threads)
    train = {"batch_size": given.batch, "threads": given.threads, "dtype": given.dtype, "separate_documents": False}
    optim = {"kind": given.optimizer, "warmup_steps": max(1, given.steps // 20), "weight_decay": 0.1}
    return merged({"train": train, "optim": optim})


if __name__ == "__main__":
    main()
