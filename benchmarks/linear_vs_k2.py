"""linear-nano against k2-nano: bits per byte at equal tokens and at equal wall-clock, on synthetic and on real stories.

    python benchmarks/linear_vs_k2.py --data train.txt --valid valid.txt --out runs/linear-vs-k2   # one thread
    python benchmarks/linear_vs_k2.py --out runs/linear-vs-k2                                      # story world alone
    python benchmarks/linear_vs_k2.py --quick --data train.txt --out /tmp/trial                    # in seconds

1. Step times: steps of both, in turn, in this process; kept in step-times.json, so that a second start goes on.
2. Learning rates: each model once at every rate, on the story world, for a third of the steps; its best is its rate
   from then on, on both texts. Everything else is the same for both: MuonClip, schedule, tokenizer, order of the text.
3. Equal tokens: `steps` steps of both, at every seed (first weights and order of the text).
4. Equal wall-clock: the slower model again, in as many steps as fit into the time of the quicker one's. They are whole
   runs: the rate warms up and falls to zero within each one's own length.

The time that counts is that of the steps: evaluation, the same for both, is not in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from small_runs import ANY_MODEL, Laboratory, Taken, add_options, merged, table

from moonlet.model.count import count
from moonlet.model.init import build
from moonlet.model.model import CausalLM
from moonlet.optim.optimizer import Optimizer, build_optimizer
from moonlet.plot.canvas import FLOOR, TRAIN, VALID, label, legend, margins, new_figure, save
from moonlet.text.atomic import atomic_write
from moonlet.train.step import train_step

MODELS = ("k2-nano", "linear-nano")
COLOURS = dict(zip(MODELS, (VALID, TRAIN), strict=True))
STORY = "story world (synthetic)"
# --quick: widths of a few dozen, which leave both what they are.
SMALL: dict[str, dict[str, Any]] = {
    "k2-nano": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
        "intermediate_size": 48, "moe_intermediate_size": 16,
    },
}  # fmt: skip
SMALL["linear-nano"] = {name: value for name, value in SMALL["k2-nano"].items() if name != "q_lora_rank"} | {
    "linear_attn_config": {"head_dim": 8, "num_heads": 2, "kda_layers": [1], "short_conv_kernel_size": 4}
}


@dataclass(frozen=True)
class Times:
    """Milliseconds of a step, medians and middle halves, and linear-nano's over k2-nano's, round by round."""

    step_ms: dict[str, float]
    quartiles: dict[str, list[float]]
    ratio: float

    @property
    def slower(self) -> str:
        """The model whose step takes longer."""
        return MODELS[self.ratio > 1]

    def fitting(self, steps: int) -> int:
        """Steps of the slower model in the time of `steps` of the other."""
        return max(2, round(steps / max(self.ratio, 1 / self.ratio)))


@dataclass(frozen=True)
class Found:
    """One text: the runs by model and seed, at equal tokens, and the slower model's at equal time."""

    text: str
    floor: float | None
    tokens_per_step: int
    equal: dict[str, list[Taken]]
    shorter: list[Taken]

    def at_equal_time(self, times: Times) -> dict[str, list[Taken]]:
        """The runs of both that take the same time."""
        return self.equal | {times.slower: self.shorter}


class AnyModel(Laboratory):
    """Runs without a model in common."""

    common = ANY_MODEL


def changes(name: str, lr: float, seed: int, steps: int, quick: bool) -> dict[str, dict[str, Any]]:
    """What tells a run from the others."""
    return {
        "model": {"preset": name, **(SMALL[name] if quick else {})},
        "optim": {"lr": lr, "warmup_steps": max(1, steps // 20)},
        "train": {"steps": steps, "seed": seed, "eval_every": max(1, steps // 6)},
    }


def time_steps(lab: Laboratory, file: Path, rounds: int, quick: bool) -> Times:
    """Steps of both models in turn, on the same batch; or what an earlier start found."""
    if file.is_file():
        return Times(**json.loads(file.read_text(encoding="utf-8")))
    runs: dict[str, tuple[CausalLM, Optimizer]] = {}
    for name in MODELS:
        recipe = lab.recipe(changes(name, 1e-3, 0, 1000, quick))
        model = build(recipe.model)
        model.compute_dtype = getattr(torch, recipe.train.dtype)
        runs[name] = model, build_optimizer(model, recipe.optim)
    inputs, targets = map(torch.from_numpy, lab.loader_of(recipe).batch(0))
    spent: dict[str, list[float]] = {name: [] for name in MODELS}
    for _ in range(rounds + 2):
        for name, (model, optimizer) in runs.items():
            begin = time.perf_counter()
            train_step(
                model, optimizer, [(inputs, targets)], count=1, lr=1e-4, grad_clip=1.0, bias_update_speed=1e-3,
                bos_id=lab.tokenizer.bos_id, qk_clip_tau=recipe.optim.clip_tau,
            )  # fmt: skip
            spent[name].append(1000 * (time.perf_counter() - begin))
    kept = {name: values[2:] for name, values in spent.items()}  # the first ones still allocate
    base, linear = (kept[name] for name in MODELS)
    times = Times(
        {name: statistics.median(values) for name, values in kept.items()},
        {name: statistics.quantiles(values, n=4)[::2] for name, values in kept.items()},
        statistics.median(b / a for a, b in zip(base, linear, strict=True)),
    )
    atomic_write(file, json.dumps(vars(times), indent=2) + "\n")
    return times


def tune(lab: Laboratory, given: argparse.Namespace) -> dict[str, dict[float, Taken]]:
    """Each model at every rate, for a third of the steps, on one seed that no comparison uses."""
    steps = max(2, given.steps // 3)

    def take(name: str, lr: float) -> Taken:
        return lab.run(changes(name, lr, 1000, steps, given.quick), f"{name} at {lr:g}, {steps} steps")

    return {name: {lr: take(name, lr) for lr in given.lrs} for name in MODELS}


def best(grid: dict[float, Taken]) -> float:
    """The rate of the lowest loss."""
    return min(grid, key=lambda lr: grid[lr].bits)


def compare(lab: Laboratory, text: str, rates: dict[str, float], times: Times, given: argparse.Namespace) -> Found:
    """All runs on one text."""

    def take(name: str, seed: int, steps: int) -> Taken:
        label = f"{name} on {text}, seed {seed}, {steps} steps"
        return lab.run(changes(name, rates[name], seed, steps, given.quick), label)

    equal: dict[str, list[Taken]] = {name: [] for name in MODELS}
    shorter = []
    for seed in range(given.seeds):
        for name in MODELS:
            equal[name].append(take(name, seed, given.steps))
        shorter.append(take(times.slower, seed, times.fitting(given.steps)))
    return Found(text, lab.dataset.manifest.floor, lab.tokens_per_step, equal, shorter)


def report(found: Found, times: Times) -> str:
    """A table of one text."""
    rows = [["", "", "steps", "tokens", "minutes of steps", "bits per byte, mean", "seeds"]]
    for what, runs in (("equal tokens", found.equal), ("equal wall-clock", found.at_equal_time(times))):
        for name in MODELS:
            steps = runs[name][0].changes["train"]["steps"]
            minutes = steps * times.step_ms[name] / 60_000
            bits = [run.bits for run in runs[name]]
            rows.append(
                [what, name, f"{steps:,}", f"{steps * found.tokens_per_step:,}", f"{minutes:.2f}",
                 f"{statistics.fmean(bits):.4f}", ", ".join(f"{value:.4f}" for value in bits)]
            )  # fmt: skip
            what = ""
        gains = [100 * (b.bits / a.bits - 1) for a, b in zip(*(runs[name] for name in MODELS), strict=True)]
        spread = ", ".join(f"{gain:+.2f}%" for gain in gains)
        rows.append(["", "linear-nano over k2-nano", "", "", "", f"{statistics.fmean(gains):+.2f}%", spread])
    floor = "" if found.floor is None else f" The entropy floor of this text is {found.floor:.4f}."
    return f"### {found.text}\n\n{table(rows)}\n\nBits per byte of all of the validation text.{floor}"


def describe(times: Times, grids: dict[str, dict[float, Taken]], sizes: dict[str, int]) -> str:
    """Step times and learning rates."""
    rows = [["", "parameters", "ms a step, median", "middle half", "learning rate: bits per byte", "best"]]
    for name, grid in grids.items():
        low, high = times.quartiles[name]
        tried = ", ".join(f"{lr:g}: {run.bits:.4f}" for lr, run in sorted(grid.items()))
        rows.append([name, f"{sizes[name]:,}", f"{times.step_ms[name]:.0f}", f"{low:.0f} - {high:.0f}", tried,
                     f"{best(grid):g}"])  # fmt: skip
    steps = next(iter(next(iter(grids.values())).values())).changes["train"]["steps"]
    return (
        f"{table(rows)}\n\nA step of linear-nano takes {times.ratio:.2f} times one of k2-nano, in turn. Learning rates "
        f"were tried on the story world, in runs of {steps} steps, and each model keeps its best."
    )


def draw(found: Sequence[Found], times: Times, picture: Path) -> None:
    """Bits per byte by tokens and by minutes of steps, a row a text; bands from the lowest to the highest seed."""
    figure = new_figure(9.5, 3.2 * len(found) + 0.7, "linear-nano and k2-nano: validation loss, bits per byte")
    grid = figure.subplots(len(found), 2, sharey="row", squeeze=False)
    margins(figure, left=0.6, right=0.2, wspace=0.08, hspace=0.42)
    for row, text in zip(grid, found, strict=True):
        scale = text.tokens_per_step / 1e3
        for axes, runs, unit, below in (
            (row[0], text.equal, dict.fromkeys(MODELS, scale), "thousand tokens"),
            (row[1], text.at_equal_time(times), {n: times.step_ms[n] / 60_000 for n in MODELS}, "minutes of steps"),
        ):
            label(axes, f"{text.text}, equal {'tokens' if axes is row[0] else 'wall-clock'}", below)
            for name in MODELS:
                curves = [run.curve for run in runs[name] if not run.diverged]
                if not curves:
                    continue
                xs = [step * unit[name] for step in curves[0][0]]
                columns = list(zip(*(bits for _, bits in curves), strict=True))
                means = [statistics.fmean(column) for column in columns]
                low, high = [min(c) for c in columns], [max(c) for c in columns]
                axes.fill_between(xs, low, high, color=COLOURS[name], alpha=0.2, linewidth=0)
                axes.plot(xs, means, color=COLOURS[name], marker="o", markersize=3.5, label=f"{name} {means[-1]:.3f}")
            if text.floor is not None:
                axes.axhline(text.floor, color=FLOOR, linewidth=1, linestyle="--")
            legend(axes)
    save(figure, picture)


def main(arguments: Sequence[str] | None = None) -> None:
    """Take the runs, print, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser, "runs/linear-vs-k2", 300)
    parser.add_argument("--data", type=Path, help="a text file, folder or glob to train on beside the story world")
    parser.add_argument("--valid", type=Path, help="its validation file; else a tenth of it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lrs", type=float, nargs="+", default=[2.5e-3, 5e-3, 1e-2], help="tried with both models")
    parser.add_argument("--rounds", type=int, default=20, help="alternating steps that are timed")
    given = parser.parse_args(arguments)
    train: dict[str, Any] = {"seq_len": 256, "batch_size": 16, "threads": given.threads, "dtype": given.dtype}
    story: dict[str, Any] = {"megabytes": 8.0, "valid_stories": 300}
    vocabulary = 2048
    if given.quick:
        given.steps, given.seeds, given.lrs, given.rounds = min(given.steps, 6), min(given.seeds, 2), given.lrs[:2], 3
        train, story, vocabulary = (
            train | {"seq_len": 32, "batch_size": 4},
            {"megabytes": 0.05, "valid_stories": 3},
            300,
        )
    torch.set_num_threads(given.threads)
    base = {"tokenizer": {"vocab_size": vocabulary}, "train": train}
    labs = {STORY: AnyModel(given.out / "story", "runs.jsonl", merged(base, {"data": story}))}
    if given.data is not None:
        data = {"kind": "text", "path": str(given.data), "valid": str(given.valid or "")}
        labs[f"{given.data.name} (real text)"] = AnyModel(
            given.out / "text", "runs.jsonl", merged(base, {"data": data})
        )
    lab = labs[STORY]
    times = time_steps(lab, given.out / "step-times.json", given.rounds, given.quick)
    grids = tune(lab, given)
    rates = {name: best(grid) for name, grid in grids.items()}
    sizes = {name: count(lab.recipe(changes(name, 1e-3, 0, 2, given.quick)).model).total for name in MODELS}
    print(describe(times, grids, sizes), end="\n\n", flush=True)
    found = []
    for text, place in labs.items():
        found.append(compare(place, text, rates, times, given))
        print(report(found[-1], times), end="\n\n", flush=True)
    picture = given.out / "linear-vs-k2.png"
    draw(found, times, picture)
    print(f"written: {picture}")


if __name__ == "__main__":
    main()
