"""The largest attention logit of each head over training, and tau, above which QK-Clip steps in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from moonlet.plot.canvas import FLOOR, PALETTE, VALID, label, legend, margins, new_figure, save, spread
from moonlet.plot.curves import axis_unit
from moonlet.plot.history import History

_MAX_LAYERS = 12


def draw_logits(history: History, folder: Path, by: str = "step") -> list[Path]:
    """Draw attention_logits.png, a panel a layer, a line a head; nothing where no logits were recorded.

    Where a head's logit is only known not to exceed a bound, the bound is drawn.
    """
    if not history.attention:
        return []
    from matplotlib.ticker import LogLocator, NullLocator

    layers = history.attention[0]["layers"]
    shown = spread(len(layers), _MAX_LAYERS)
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(1 + 2.6 * columns, 0.9 + 2.0 * rows, f"{history.title}: largest attention logit of each head")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    margins(figure, left=0.5, hspace=0.45, wspace=0.1)
    unit, below = axis_unit([history], by)
    xs = [x / unit for x in history.at([r["step"] for r in history.attention], by)]
    tau = history.recipe.optim.clip_tau
    for place, axes in enumerate(grid.flat):
        if place >= len(shown):
            axes.set_visible(False)
            continue
        _draw_heads(axes, xs, history.attention, shown[place])
        label(axes, f"layer {layers[shown[place]]}", below if place // columns == rows - 1 else "")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        if tau is not None:
            axes.axhline(tau, color=FLOOR, linewidth=1.2, linestyle="--", label=f"tau {tau:g}")
    if tau is not None:
        legend(grid[0][0])
    save(figure, folder / "attention_logits.png")
    return [folder / "attention_logits.png"]


def _draw_heads(axes: Any, xs: list[float], records: list[dict[str, Any]], place: int) -> None:
    for head in range(len(records[0]["gamma"][place])):
        values = [_known(r, place, head) for r in records]
        axes.plot(xs, values, color=PALETTE[head % len(PALETTE)], linewidth=1.2)
        clipped = [i for i, r in enumerate(records) if r["gamma"][place][head] < 1]
        axes.plot([xs[i] for i in clipped], [values[i] for i in clipped], "o", color=VALID, markersize=3)


def largest_logits(record: dict[str, Any]) -> list[float]:
    """Of each layer the largest of what is known of its heads, 0 where nothing is."""
    heads = range(len(record["gamma"][0]))
    known = ([_known(record, place, head) for head in heads] for place in range(len(record["layers"])))
    return [max((value for value in layer if not math.isnan(value)), default=0.0) for layer in known]


def _known(record: dict[str, Any], place: int, head: int) -> float:
    exact, bound = record["max_logits"][place][head], record["logit_bound"][place][head]
    value = bound if exact is None else exact
    return math.nan if value is None or value <= 0 else float(value)
