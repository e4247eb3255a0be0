"""The balance of experts: the load of each over training, with every way of balancing them and with none.

    python benchmarks/expert_balance.py --out runs/expert-balance      # one thread; a second start goes on
    python benchmarks/expert_balance.py --quick --out /tmp/trial       # the same code in seconds

16 experts, two a token, in runs that differ in nothing else:

    none               the bias that chooses experts stays zero
    sign               after each step it moves by u towards the experts with too few tokens (DeepSeek-V3)
    zero-mean          the same, the mean of the movement taken off (Moonlight)
    aux loss           no bias; the sequence-level auxiliary loss at the weight of K2's configuration

u is 0.001 as published, for runs of many thousand steps: in 300 steps a bias cannot move further than 0.3, while
scores span 0 to 1. So the steps are also taken at 0.003.

A load is the number of tokens a step sends to an expert, over the layer's mean: 1 is even, 8 (experts over experts a
token) the most there can be, and an expert without a token in a step counts as dead in it. What is shown to hold:
with the bias step, from step 300 on, no load of any layer exceeds 2 and no expert is dead.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from small_runs import Laboratory, Taken, add_options, common, merged, table

from moonlet.config.sections import OptimSettings
from moonlet.model.model import CausalLM
from moonlet.optim.balance import routers_of
from moonlet.plot.canvas import (
    FLOOR,
    INK,
    MUTED,
    TRAIN,
    VALID,
    balance_shades,
    label,
    legend,
    margins,
    new_figure,
    save,
)
from moonlet.plot.loss import smooth

EXPERTS, ACTIVE = 16, 2
SPEED = 3e-3
NONE, AUX = "none", "aux loss"
VARIANTS: dict[str, dict[str, Any]] = {
    NONE: {"bias_update_speed": 0.0},
    "sign, u 0.001": {"bias_update_speed": 1e-3},
    f"sign, u {SPEED:g}": {"bias_update_speed": SPEED},
    f"zero-mean, u {SPEED:g}": {"bias_update_speed": SPEED, "balance": "zero-mean"},
    AUX: {"bias_update_speed": 0.0, "aux_loss_alpha": 1e-3},
}
# Told apart without colour too: by lightness and by their dashes.
STYLES: dict[str, tuple[str, Any]] = dict(
    zip(
        VARIANTS,
        ((VALID, "-"), ("#56b4e9", "-"), (TRAIN, "-"), ("#152a5c", (0, (4, 2))), (MUTED, (0, (1, 1)))),
        strict=True,
    )
)
_FROM, _AT_MOST = 300, 2.0


def variants() -> dict[str, dict[str, Any]]:
    """The ways of balancing that the package's settings know."""
    known = {field.name for field in fields(OptimSettings)}
    return {name: settings for name, settings in VARIANTS.items() if settings.keys() <= known}


@contextmanager
def biases(model: CausalLM) -> Iterator[Callable[[], dict[str, Any]]]:
    """Note after each step how far the biases have moved: the mean over a layer's experts, and their spread."""

    def after_step() -> dict[str, Any]:
        values = [router.e_score_correction_bias for router in routers_of(model)]
        return {
            "bias_mean": [round(b.mean().item(), 6) for b in values],
            "bias_spread": [round((b.max() - b.min()).item(), 6) for b in values],
        }

    yield after_step


def measure(lab: Laboratory, steps: int) -> dict[str, Taken]:
    """A run each."""
    train = {"steps": steps, "eval_every": max(1, steps // 8)}
    return {
        name: lab.run({"train": train, "optim": {"kind": "muon", "lr": 1e-2, **settings}}, f"balance: {name}", biases)
        for name, settings in variants().items()
    }


def late(run: Taken, column: str, start: int) -> list[float]:
    """A column of the steps after `start`, or of the last tenth of a run that ends before."""
    train = run.of("train")
    first = start if train[-1]["step"] > start else int(0.9 * train[-1]["step"])
    return [line[column] for line in train if line["step"] > first]


def report(runs: dict[str, Taken]) -> str:
    """A table, and what holds."""
    head = ["balance", f"largest max/mean after step {_FROM}", "median", "most experts dead in a step",
            "spread of the bias", "mean of the bias", "final validation bits per byte"]  # fmt: skip
    rows: list[list[Any]] = [head]
    for name, run in runs.items():
        loads, dead, bias = late(run, "load_max", _FROM), late(run, "load_dead", _FROM), run.of("watched")[-1]
        rows.append([name, f"{max(loads):.2f}", f"{statistics.median(loads):.2f}", f"{max(dead):.0f}",
                     f"{max(bias['bias_spread']):.3f}", f"{max(bias['bias_mean'], key=abs):+.4f}",
                     f"{run.bits:.4f}"])  # fmt: skip
    verdicts = []
    for name in [name for name in runs if name not in (NONE, AUX)]:
        good = max(late(runs[name], "load_max", _FROM)) <= _AT_MOST and not max(late(runs[name], "load_dead", _FROM))
        what = f"{name}: no load exceeds {_AT_MOST:g} after step {_FROM} and no expert is dead"
        verdicts.append(f"- {what}: {'yes' if good else 'NO'}")
    return f"Of all layers the worst.\n\n{table(rows)}\n\n" + "\n".join(verdicts)


def draw(runs: dict[str, Taken], picture: Path) -> None:
    """Heat maps, a row a layer and a column a way of balancing; beneath, the busiest and the dead over time."""
    layers = next(iter(runs.values())).of("experts")[0]["layers"]
    height = 1.0 + 1.45 * len(layers) + 3.1
    width = 4 + 2.2 * len(runs)
    figure = new_figure(width, height, f"Load of {EXPERTS} experts, {ACTIVE} a token, by how they are balanced")
    outer = figure.add_gridspec(2, 1, height_ratios=(1.45 * len(layers), 2.5), hspace=0.36)
    margins(figure, left=0.62, right=0.95, top=0.72)
    maps = outer[0].subgridspec(len(layers), len(runs), hspace=0.28, wspace=0.1)
    image: Any = None
    for column, (name, run) in enumerate(runs.items()):
        for row, layer in enumerate(layers):
            axes = figure.add_subplot(maps[row, column])
            image = _draw_loads(axes, run, row)
            label(axes, f"{name}, layer {layer}", "step" if row == len(layers) - 1 else "")
            axes.grid(False)
            axes.tick_params(labelbottom=row == len(layers) - 1, labelleft=column == 0)
            if column == 0:
                axes.set_ylabel("expert", fontsize=8)
    bottom, top = axes.get_position().y0, max(each.get_position().y1 for each in figure.axes)
    bar = figure.colorbar(image, cax=figure.add_axes((1 - 0.75 / width, bottom, 0.012, top - bottom)))
    bar.set_ticks([0, 0.5, 1, 1.5, 2], labels=["0", "½", "1 even", "1½", "≥ 2"])
    bar.ax.tick_params(labelsize=7, colors=INK)
    bar.outline.set_visible(False)
    lines = outer[1].subgridspec(1, 2, wspace=0.14)
    _draw_line(figure.add_subplot(lines[0]), runs, "load_max", "busiest expert / mean, worst layer (smoothed)")
    _draw_line(figure.add_subplot(lines[1]), runs, "load_dead", "experts without a token, all layers (smoothed)")
    save(figure, picture)


def _draw_loads(axes: Any, run: Taken, place: int) -> Any:
    import numpy as np
    from matplotlib.colors import TwoSlopeNorm

    records = run.of("experts")
    ratios = np.array([record["load"][place] for record in records]).T * EXPERTS  # (E, records)
    edges = np.array([0, *(record["step"] for record in records)])
    image = axes.pcolormesh(
        edges, np.arange(len(ratios) + 1), ratios, cmap=balance_shades(), norm=TwoSlopeNorm(1.0, 0.0, 2.0)
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.invert_yaxis()  # expert 0 above, as in a table
    axes.set_yticks([0.5, len(ratios) - 0.5], ["0", str(len(ratios) - 1)])
    return image


def _draw_line(axes: Any, runs: dict[str, Taken], column: str, what: str) -> None:
    label(axes, what, "step")
    for name, run in runs.items():
        train = run.of("train")
        colour, dashes = STYLES[name]
        axes.plot([line["step"] for line in train], smooth([line[column] for line in train]), color=colour,
                  linestyle=dashes, linewidth=1.8, label=f"{name}: {run.bits:.3f} bits per byte")  # fmt: skip
    if column == "load_max":
        axes.axhline(_AT_MOST, color=FLOOR, linewidth=1, linestyle="--")
        axes.annotate("2", (1.0, _AT_MOST), xycoords=("axes fraction", "data"), textcoords="offset points",
                      xytext=(3, 0), va="center", fontsize=8, color=FLOOR)  # fmt: skip
        axes.set_ylim(1, EXPERTS / ACTIVE)  # the room above the curves is the legend's
        legend(axes, loc="upper right", ncols=2)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(0, train[-1]["step"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Take the runs, print, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser, "runs/expert-balance", 400)
    given = parser.parse_args(arguments)
    if given.quick:
        given.steps = min(given.steps, 20)
    model = {"n_routed_experts": EXPERTS, "num_experts_per_tok": ACTIVE, "moe_intermediate_size": 64}
    base = merged({"optim": {"warmup_steps": max(1, given.steps // 20)}}, common(given), {"model": model})
    lab = Laboratory(given.out, "runs.jsonl", base)
    runs = measure(lab, given.steps)
    print(report(runs))
    picture = given.out / "expert-balance.png"
    draw(runs, picture)
    print(f"\nwritten: {picture}")


if __name__ == "__main__":
    main()
