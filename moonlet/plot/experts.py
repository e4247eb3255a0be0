"""How evenly the experts are used: each one's share over training, the worst of a layer, and the entropies.

    ratio = share of an expert * E          1 is an even load, 0 an expert without work
    evenness = entropy / ln E               1 is even; of the loads, and of the routers' scores a token

A router whose scores a token are even has no opinion; loads that are even are what the balance strives for.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from moonlet.plot.canvas import INK, PALETTE, balance_shades, label, legend, margins, new_figure, save, spread
from moonlet.plot.curves import axis_unit
from moonlet.plot.history import History
from moonlet.plot.loss import smooth

_MAX_LAYERS = 12
# Colours end at this multiple of an even load.
_MOST = 2.0


def draw_experts(history: History, folder: Path, by: str = "step") -> list[Path]:
    """Draw expert_load.png and expert_balance.png, as far as the run recorded what they show; return those made."""
    made = []
    if history.experts:
        made.append(_draw_load(history, folder / "expert_load.png", by))
    if history.experts or history.routers or history.columns("load_max")[0]:
        made.append(_draw_balance(history, folder / "expert_balance.png", by))
    return made


def load_ratios(history: History, layer: int) -> list[list[float]]:
    """Share * E of each expert of a layer, a list of E a record; `layer` counts MoE layers only."""
    return [[share * len(r["load"][layer]) for share in r["load"][layer]] for r in history.experts]


def _draw_load(history: History, picture: Path, by: str) -> Path:
    """A heat map a layer: experts downward, training to the right."""
    import numpy as np
    from matplotlib.colors import TwoSlopeNorm

    layers = history.experts[0]["layers"]
    shown = spread(len(layers), _MAX_LAYERS)
    unit, below = axis_unit([history], by)
    xs = np.array(history.at([r["step"] for r in history.experts], by)) / unit
    # A record speaks for the time from the one before it.
    edges = np.concatenate(([0.0], xs))
    columns = 1 if len(shown) < 4 else 2 if len(shown) < 9 else 3
    rows = math.ceil(len(shown) / columns)
    some = "" if len(shown) == len(layers) else f", {len(shown)} of {len(layers)} layers"
    figure = new_figure(9, 1.05 + 1.35 * rows, f"{history.title}: load of each expert{some}")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    margins(figure, right=0.95, top=0.62, hspace=0.42, wspace=0.16)
    image: Any = None
    for place, axes in enumerate(grid.T.flat):
        if place >= len(shown):
            axes.set_visible(False)
            continue
        ratios = np.array(load_ratios(history, shown[place])).T  # (E, records)
        image = axes.pcolormesh(
            edges, np.arange(len(ratios) + 1), ratios, cmap=balance_shades(), norm=TwoSlopeNorm(1.0, 0.0, _MOST)
        )
        last = place % rows == rows - 1 or place == len(shown) - 1
        label(axes, f"layer {layers[shown[place]]}", below if last else "")
        axes.grid(False)
        axes.invert_yaxis()  # expert 0 above, as in a table
        axes.set_yticks([0.5, len(ratios) - 0.5], ["0", str(len(ratios) - 1)])
        axes.set_ylabel("expert", fontsize=8)
    height = figure.get_size_inches()[1]
    bar = figure.colorbar(image, cax=figure.add_axes((1 - 0.72 / 9, 0.48 / height, 0.012, 1 - 1.1 / height)))
    bar.set_ticks([0, 0.5, 1, 1.5, 2], labels=["0", "½", "1 even", "1½", "≥ 2"])
    bar.ax.tick_params(labelsize=7, colors=INK)
    bar.outline.set_visible(False)
    save(figure, picture)
    return picture


def _draw_balance(history: History, picture: Path, by: str) -> Path:
    unit, below = axis_unit([history], by)
    panels = [
        ("busiest expert / mean (1 is even)", history.experts, "max_over_mean"),
        ("evenness of the loads", history.experts, "entropy"),
        ("evenness of the routers' scores", history.routers, "entropy"),
    ]
    panels = [panel for i, panel in enumerate(panels) if panel[1] or i == 0]
    figure = new_figure(1.2 + 3.2 * len(panels), 3.4, f"{history.title}: balance of the experts")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    margins(figure, left=0.5, wspace=0.22)
    for axes, (what, records, field) in zip(grid, panels, strict=True):
        label(axes, what, below)
        axes.set_xlim(0, history.at([history.last_step], by)[0] / unit)
        if records:
            xs = [x / unit for x in history.at([r["step"] for r in records], by)]
            scale = math.log(history.recipe.model.n_routed_experts) if field == "entropy" else 1.0
            _draw_layers(axes, xs, records, field, scale)
        else:
            steps, worst = history.columns("load_max")
            axes.plot([x / unit for x in history.at(steps, by)], smooth(worst), color=PALETTE[0], linewidth=1.6)
            axes.set_ylim(bottom=1)
    if any(records for _, records, _ in panels):
        legend(grid[0])
    save(figure, picture)
    return picture


def _draw_layers(axes: Any, xs: list[float], records: list[dict[str, Any]], field: str, scale: float) -> None:
    layers = records[0]["layers"]
    shown = spread(len(layers), len(PALETTE))
    for colour, place in zip(PALETTE, shown, strict=False):
        values = [r[field][place] / scale for r in records]
        axes.plot(
            xs, values, color=colour, linewidth=1.4, label=f"layer {layers[place]}",
            marker="o", markersize=3 if len(xs) < 30 else 0,
        )  # fmt: skip
    if field == "max_over_mean":
        axes.set_ylim(bottom=1)
    else:
        axes.set_ylim(top=1.0 + 0.02 * (1.0 - axes.get_ylim()[0]))
        axes.axhline(1.0, color="#15803d", linewidth=1, linestyle="--")
