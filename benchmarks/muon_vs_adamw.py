"""How many of AdamW's tokens Muon needs to reach AdamW's final validation loss, each with its own tuned learning rate.

    python benchmarks/muon_vs_adamw.py --out runs/muon-vs-adamw          # one thread; a second start goes on
    python benchmarks/muon_vs_adamw.py --quick --out /tmp/trial          # the same code in seconds

1. Every learning rate of each grid once, at full length; a grid whose best value lies at its edge is prolonged, by
   factors of two, until it does not.
2. At the best rates, more seeds. A seed is the model's first weights and the order of the text, shared by both.
3. Muon again in shorter runs, each with a whole schedule of its own (warmup, constant, decay to zero). A point inside
   one long run would not do: there the rate has not fallen yet, and most of the loss of a run falls with the rate. So
   the tokens that Muon needs are read off the final losses of runs of several lengths, between two lengths on a line
   over the logarithm of tokens. The rate stays the one that was best at full length, which is in Muon's disfavour.

The ratio is taken seed by seed and reported with its range. In wall-clock it is multiplied by the ratio of the times
of a step, measured in this process by taking steps of both in turn. The claim of Moonlight (arXiv 2502.16982,
section 3.2), for models of 0.4 to 1.5 billion parameters at compute-optimal lengths, is 0.52 of the compute.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from small_runs import Laboratory, Taken, add_options, common, merged, table

from moonlet.model.init import build
from moonlet.model.model import CausalLM
from moonlet.optim.optimizer import build_optimizer
from moonlet.plot.canvas import FLOOR, INK, MUTED, TRAIN, VALID, label, legend, margins, new_figure, save

CLAIM = 0.52
NAMES = {"adamw": "AdamW", "muon": "Muon"}
COLOURS = {"adamw": VALID, "muon": TRAIN}
# Behind text that a line would run through.
PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
# A grid is prolonged by at most so many values.
_PROLONG = 3
# Shorter and longer runs than asked for are taken until AdamW's loss lies between two of them, within these.
_SHORTEST, _LONGEST = 0.12, 2.0

Grid = dict[float, Taken]


@dataclass(frozen=True)
class Found:
    """Everything that is reported. Lengths are fractions of AdamW's tokens."""

    grids: dict[str, Grid]
    adamw: dict[int, Taken]  # by seed
    muon: dict[int, dict[float, Taken]]  # by seed and length
    ratios: dict[int, float]  # tokens, by seed
    step_ms: dict[str, float]
    step_ratio: float
    tokens: int  # of a full run

    def best(self, kind: str) -> float:
        """The learning rate with the lowest final loss."""
        return best(self.grids[kind])


def best(grid: Grid) -> float:
    """The learning rate with the lowest final loss."""
    return min(grid, key=lambda lr: grid[lr].bits)


def tune(take: Callable[[float], Taken], lrs: Sequence[float], prolong: int = _PROLONG) -> Grid:
    """One run a learning rate, and beyond the edge of the grid while the best value is there."""
    grid = {lr: take(lr) for lr in sorted(lrs)}
    for _ in range(prolong):
        ordered = sorted(grid)
        if best(grid) not in (ordered[0], ordered[-1]):
            break
        further = ordered[0] / 2 if best(grid) == ordered[0] else ordered[-1] * 2
        grid[further] = take(further)
    return grid


def crossing(losses: dict[float, float], target: float) -> float | None:
    """The length from which on the final loss is at most `target`; None when that lies outside the given lengths.

    Args:
        losses: final loss by length, two lengths at least.
    """
    ordered = sorted(losses)
    above = [length for length in ordered if losses[length] > target]
    if not above or above[-1] == ordered[-1]:
        return None
    low = above[-1]
    high = ordered[ordered.index(low) + 1]
    if math.isinf(losses[low]):
        return high
    part = (losses[low] - target) / (losses[low] - losses[high])
    return math.exp(math.log(low) + part * (math.log(high) - math.log(low)))


def reach(take: Callable[[float], Taken], lengths: Sequence[float], target: float) -> tuple[dict[float, Taken], float]:
    """Runs of several lengths, and the length at which their final loss is `target`; NaN when none is long enough."""
    runs = {length: take(length) for length in sorted(lengths)}
    while (found := crossing({length: run.bits for length, run in runs.items()}, target)) is None:
        longest = max(runs)
        further = longest * 1.25 if runs[longest].bits > target else min(runs) * 0.8
        if not _SHORTEST <= further <= _LONGEST:
            return runs, math.nan if further > 1 else min(runs)
        runs[further] = take(further)
    return runs, found


def measure(lab: Laboratory, given: argparse.Namespace) -> Found:
    """Take all runs."""

    def take(kind: str, lr: float, seed: int = 0, length: float = 1.0) -> Taken:
        steps = max(2, round(given.steps * length))
        train = {"steps": steps, "seed": seed, "eval_every": max(1, given.steps // 10)}
        label = f"{NAMES[kind]} at {lr:g}, seed {seed}, {steps} steps"
        return lab.run({"train": train, "optim": {"kind": kind, "lr": lr}}, label)

    prolong = 0 if given.quick else _PROLONG
    grids = {
        "adamw": tune(lambda lr: take("adamw", lr), given.adamw_lrs, prolong),
        "muon": tune(lambda lr: take("muon", lr), given.muon_lrs, prolong),
    }
    adamw, muon, ratios = {}, {}, {}
    for seed in range(given.seeds):
        adamw[seed] = take("adamw", best(grids["adamw"]), seed)

        def shorter(length: float, seed: int = seed) -> Taken:
            return take("muon", best(grids["muon"]), seed, length)

        muon[seed], ratios[seed] = reach(shorter, given.lengths, adamw[seed].bits)
    step_ms, step_ratio = time_steps(lab, {kind: best(grid) for kind, grid in grids.items()}, given.rounds)
    return Found(grids, adamw, muon, ratios, step_ms, step_ratio, given.steps * lab.tokens_per_step)


def time_steps(lab: Laboratory, lrs: dict[str, float], rounds: int) -> tuple[dict[str, float], float]:
    """Median milliseconds of a step of each, and the median over rounds of Muon's time to AdamW's, taken in turn."""
    models: dict[str, tuple[CausalLM, Any]] = {}
    for kind, lr in lrs.items():
        recipe = lab.recipe({"train": {"steps": 1000}, "optim": {"kind": kind, "lr": lr}})
        model = build(recipe.model).train()
        model.compute_dtype = getattr(torch, recipe.train.dtype)
        models[kind] = model, build_optimizer(model, recipe.optim)
    stream = lab.dataset.tokens("train").read(0, lab.tokens_per_step + 1).astype("int64")
    rows = torch.from_numpy(stream)
    shape = (recipe.train.batch_size, recipe.train.seq_len)
    inputs, targets = rows[:-1].view(shape), rows[1:].view(shape)
    spent: dict[str, list[float]] = {kind: [] for kind in models}
    for _ in range(rounds + 2):
        for kind, (model, optimizer) in models.items():
            begin = time.perf_counter()
            model.loss(inputs, targets).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(1e-4)
            optimizer.zero_grad()
            spent[kind].append(1000 * (time.perf_counter() - begin))
    kept = {kind: times[2:] for kind, times in spent.items()}  # the first ones still allocate
    ratio = statistics.median(m / a for m, a in zip(kept["muon"], kept["adamw"], strict=True))
    return {kind: statistics.median(times) for kind, times in kept.items()}, ratio


def report(found: Found) -> str:
    """The tables."""
    seeds = list(found.ratios)
    grid = [["optimizer", "learning rate: final validation bits per byte (seed 0)", "best"]]
    for kind, runs in found.grids.items():
        each = ", ".join(f"{lr:g}: {_number(runs[lr].bits)}" for lr in sorted(runs))
        grid.append([NAMES[kind], each, f"**{found.best(kind):g}**"])
    rows: list[list[Any]] = [["", *(f"seed {seed}" for seed in seeds), "mean"]]
    rows.append(_row("AdamW, 1.00 of the tokens", [found.adamw[seed].bits for seed in seeds], 4))
    for length in sorted(set.intersection(*(set(runs) for runs in found.muon.values()))):
        values = [found.muon[seed][length].bits for seed in seeds]
        rows.append(_row(f"Muon, {length:.2f} of the tokens", values, 4))
    ratios = [found.ratios[seed] for seed in seeds]
    rows.append(_row("**tokens Muon needs, of AdamW's**", ratios, 3))
    rows.append(_row("**wall-clock Muon needs, of AdamW's**", [r * found.step_ratio for r in ratios], 3))
    ms = found.step_ms
    return "\n\n".join(
        (
            f"A full run is {found.tokens:,} tokens. Validation loss in bits per byte.",
            table(grid),
            table(rows),
            f"A step takes AdamW {ms['adamw']:.0f} ms and Muon {ms['muon']:.0f} ms, in turn: {found.step_ratio:.2f} "
            f"times. Range of the ratio over {len(seeds)} seeds: {min(ratios):.3f} to {max(ratios):.3f} in tokens. "
            f"The paper's claim is about {CLAIM}.",
        )
    )


def _row(name: str, values: Sequence[float], digits: int) -> list[str]:
    return [name, *(_number(value, digits) for value in values), _number(statistics.fmean(values), digits)]


def _number(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "diverged" if value > 0 else "not reached"


def draw(found: Found, floor: float | None, picture: Path) -> None:
    """Loss over learning rate; loss over tokens at the best; the ratio."""
    figure = new_figure(13, 4.4, "Muon and AdamW, each at its best learning rate: story world (synthetic)")
    axes = figure.subplots(1, 3, width_ratios=(1, 1.35, 0.9))
    margins(figure, left=0.62, right=0.2, top=0.8, bottom=0.55, wspace=0.24)
    _draw_rates(axes[0], found)
    _draw_lengths(axes[1], found, floor)
    _draw_ratios(axes[2], found)
    save(figure, picture)


def _draw_rates(axes: Any, found: Found) -> None:
    label(axes, "final validation loss (bits per byte) by learning rate", "learning rate (peak)")
    for kind, grid in found.grids.items():
        lrs = [lr for lr in sorted(grid) if math.isfinite(grid[lr].bits)]
        axes.plot(
            lrs, [grid[lr].bits for lr in lrs], color=COLOURS[kind], marker="os"[kind == "adamw"], label=NAMES[kind]
        )
        top = found.best(kind)
        axes.plot([top], [grid[top].bits], "o", markersize=13, mfc="none", mec=COLOURS[kind])
        axes.annotate(
            f"{top:g}", (top, grid[top].bits), textcoords="offset points", xytext=(0, -18), ha="center",
            color=COLOURS[kind], fontsize=9,
        )  # fmt: skip
    axes.set_xscale("log")
    ticks = sorted({lr for grid in found.grids.values() for lr in grid})
    axes.set_xticks(ticks, [f"{1000 * lr:.3g}" for lr in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("peak learning rate, thousandths", fontsize=8)
    axes.margins(y=0.15)
    legend(axes)


def _draw_lengths(axes: Any, found: Found, floor: float | None) -> None:
    """Losses inside full runs, and the final ones of Muon's runs of each length."""
    unit = 1e6 if found.tokens >= 2e6 else 1e3
    label(axes, "validation loss (bits per byte) by tokens read", f"{'million' if unit == 1e6 else 'thousand'} tokens")
    target = statistics.fmean(run.bits for run in found.adamw.values())
    shown: list[float] = [target]
    full = {"adamw": list(found.adamw.values()), "muon": [runs[1.0] for runs in found.muon.values() if 1.0 in runs]}
    for kind, runs in full.items():
        steps = runs[0].curve[0]
        columns = list(zip(*(run.curve[1] for run in runs), strict=True))
        xs = [found.tokens / unit * step / steps[-1] for step in steps]
        mean = [statistics.fmean(column) for column in columns]
        axes.fill_between(xs, [min(c) for c in columns], [max(c) for c in columns], color=COLOURS[kind], alpha=0.2)
        axes.plot(xs, mean, color=COLOURS[kind], linewidth=1.4, label=f"{NAMES[kind]}, within its full run",
                  linestyle="-" if kind == "adamw" else (0, (4, 2)))  # fmt: skip
        shown += mean[len(mean) // 4 :]
    lengths = sorted({length for runs in found.muon.values() for length in runs})
    finals = [[runs[length].bits for runs in found.muon.values() if length in runs] for length in lengths]
    xs = [found.tokens / unit * length for length in lengths]
    means = [statistics.fmean(column) for column in finals]
    errors = [
        [m - min(c) for m, c in zip(means, finals, strict=True)],
        [max(c) - m for m, c in zip(means, finals, strict=True)],
    ]
    axes.errorbar(
        xs, means, errors, color=TRAIN, marker="o", linewidth=1.8, capsize=3, label="Muon, ends of whole runs"
    )
    axes.plot([found.tokens / unit], [target], "s", color=VALID, markersize=7)
    axes.axhline(target, color=VALID, linewidth=0.9, linestyle=":")
    needed = statistics.fmean(found.ratios.values()) * found.tokens / unit
    if math.isfinite(needed):
        arrow = {"arrowstyle": "->", "color": INK, "lw": 1.4}
        axes.annotate("", (needed, target), (found.tokens / unit, target), arrowprops=arrow)
        # On the left, where no curve is so low yet.
        for text, offset, above in (
            ("AdamW's final loss", 4, "bottom"),
            (f"Muon: with {needed * unit / found.tokens:.2f} of the tokens", -4, "top"),
        ):
            axes.annotate(
                text, (0.01, target), xycoords=("axes fraction", "data"), textcoords="offset points",
                xytext=(0, offset), va=above, fontsize=8, color=INK,
            )  # fmt: skip
    low, high = min(*shown, *means), max(shown)
    if floor is not None and floor > low - 0.6 * (high - low):
        axes.axhline(floor, color=FLOOR, linewidth=1, linestyle="--")
        axes.annotate("entropy floor", (0.02, floor), xycoords=("axes fraction", "data"), textcoords="offset points",
                      xytext=(0, 4), fontsize=8, color=FLOOR)  # fmt: skip
        low = min(low, floor)
    axes.set_ylim(low - 0.06 * (high - low), high)
    axes.set_xlim(0, 1.03 * max(found.tokens / unit, *xs))
    legend(axes, loc="upper right")


def _draw_ratios(axes: Any, found: Found) -> None:
    label(axes, "Muon's needs as a part of AdamW's", "a dot a seed, the bar their mean")
    tokens = list(found.ratios.values())
    rows = {"tokens": tokens, "wall-clock": [ratio * found.step_ratio for ratio in tokens]}
    for y, values in enumerate(rows.values()):
        known = [value for value in values if math.isfinite(value)]
        axes.plot(known, [y] * len(known), "o", color=TRAIN, markersize=7, alpha=0.7)
        if known:
            mean = statistics.fmean(known)
            axes.plot([mean, mean], [y - 0.14, y + 0.14], color=INK, linewidth=2)
            axes.annotate(
                f"{mean:.2f}  ({min(known):.2f} to {max(known):.2f})", (mean, y - 0.14), textcoords="offset points",
                xytext=(0, 7), ha="center", fontsize=9, color=INK, bbox=PAPER,
            )  # fmt: skip
    for x, name, colour in ((CLAIM, f"paper {CLAIM}", MUTED), (1.0, "AdamW", VALID)):
        axes.axvline(x, color=colour, linewidth=1.2, linestyle="--")
        axes.annotate(name, (x, 1.55), textcoords="offset points", xytext=(3, 0), fontsize=8, color=colour)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=9)
    axes.set_ylim(1.7, -0.6)
    axes.set_xlim(0, max(1.25, 1.1 * max(v for values in rows.values() for v in values if math.isfinite(v))))


def main(arguments: Sequence[str] | None = None) -> None:
    """Take the runs, print, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser, "runs/muon-vs-adamw", 400)
    parser.add_argument("--seeds", type=int, default=3, help="seeds at the best learning rates")
    parser.add_argument("--adamw-lrs", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3, 1.6e-2])
    parser.add_argument("--muon-lrs", type=float, nargs="+", default=[5e-3, 1e-2, 2e-2, 4e-2])
    parser.add_argument("--lengths", type=float, nargs="+", default=[0.4, 0.5, 0.6, 0.75, 1.0], help="of Muon's runs")
    parser.add_argument("--rounds", type=int, default=40, help="alternating steps that are timed")
    given = parser.parse_args(arguments)
    if given.quick:
        given.steps, given.seeds, given.rounds = min(given.steps, 16), min(given.seeds, 2), 3
        given.lengths, given.adamw_lrs, given.muon_lrs = [0.5, 1.0], given.adamw_lrs[:2], given.muon_lrs[:2]
    base = merged({"optim": {"warmup_steps": max(1, given.steps // 20)}}, common(given))
    lab = Laboratory(given.out, "runs.jsonl", base)
    found = measure(lab, given)
    print(report(found))
    picture = given.out / "muon-vs-adamw.png"
    draw(found, lab.dataset.manifest.floor, picture)
    print(f"\nwritten: {picture}")


if __name__ == "__main__":
    main()
