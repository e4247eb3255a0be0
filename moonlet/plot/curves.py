"""Curves of one run, or of several in one picture: loss, learning rate, gradient norm, tokens per second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moonlet.plot.canvas import FLOOR, INK, PALETTE, VALID, label, legend, margins, new_figure, plain, save
from moonlet.plot.history import History, names_of, thin
from moonlet.plot.loss import RECALLED, limits, smooth

_SINGLE = {
    "lr": ("learning_rate.png", "learning rate"),
    "grad_norm": ("gradient_norm.png", "gradient norm, before clipping"),
    "tokens_per_s": ("tokens_per_second.png", "training speed (tokens a second)"),
}
# More points than this say nothing more at the size of a picture.
_POINTS = 2000


def draw_curves(histories: Sequence[History], folder: Path, by: str = "step") -> list[Path]:
    """Draw loss.png, learning_rate.png, gradient_norm.png and tokens_per_second.png into `folder`.

    Args:
        by: what the x axis counts: "step", "tokens" or "time".

    Returns:
        The pictures, those left out for want of numbers not among them.
    """
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(histories))]
    names = names_of(histories) if len(histories) > 1 else [""]
    title = histories[0].title if len(histories) == 1 else f"{len(histories)} runs"
    made = [_draw_losses(histories, names, colours, folder / "loss.png", title, by)]
    for column, (file, what) in _SINGLE.items():
        if any(len(h.columns(column)[0]) > 1 for h in histories):
            made.append(_draw_single(histories, names, colours, folder / file, f"{title}: {what}", column, by))
    return made


def _draw_losses(
    histories: Sequence[History], names: Sequence[str], colours: Sequence[str], picture: Path, title: str, by: str
) -> Path:
    figure = new_figure(9, 4, title)
    left, right = figure.subplots(1, 2)
    margins(figure, left=0.5, wspace=0.16)
    unit, below = axis_unit(histories, by)
    bounds, end = [], 0.0
    for history, name, colour in zip(histories, names, colours, strict=True):
        steps, losses = history.columns("loss")
        xs = [x / unit for x in history.at(steps, by)]
        bounds.append(limits(losses))
        if len(histories) == 1:
            left.plot(*thin(xs, losses, _POINTS), color=colour, alpha=0.3, linewidth=0.8)
        left.plot(*thin(xs, smooth(losses), _POINTS), color=colour, linewidth=1.6, label=plain(name))
        _draw_bits(right, history, name, VALID if len(histories) == 1 else colour, unit, by)
        end = max(end, xs[-1])
    left.set_ylim(min(low for low, _ in bounds), max(high for _, high in bounds))
    label(left, "training loss (nats a token)", below)
    kinds = sorted({h.recalls for h in histories if h.evals}) or [False]
    label(right, " / ".join(RECALLED if recalled else "validation (bits per byte)" for recalled in kinds), below)
    _draw_floors(right, histories, names, colours)
    if not any(h.evals for h in histories):
        right.text(0.5, 0.5, "not evaluated yet", transform=right.transAxes, ha="center", fontsize=9, color=INK)
    left.set_xlim(0, 1.02 * end)
    right.set_xlim(0, (1.13 if len(histories) == 1 else 1.02) * end)  # room for the last value
    if len(histories) > 1:
        legend(left)
        legend(right)
    save(figure, picture)
    return picture


def _draw_bits(axes: Any, history: History, name: str, colour: str, unit: float, by: str) -> None:
    steps, bits = history.bits()
    if not bits:
        return
    xs = [x / unit for x in history.at(steps, by)]
    what = plain(f"{name}: {bits[-1]:.3f}") if name else ""
    axes.plot(xs, bits, color=colour, linewidth=1.6, marker="o", markersize=3.5 if len(bits) < 60 else 0, label=what)
    if not name:
        axes.annotate(
            f"{bits[-1]:.3f}", (xs[-1], bits[-1]), textcoords="offset points", xytext=(6, 0), va="center",
            color=colour, fontsize=9,
        )  # fmt: skip


def _draw_floors(axes: Any, histories: Sequence[History], names: Sequence[str], colours: Sequence[str]) -> None:
    """The entropy floor: one line where all runs share a text, else one a run in its colour."""
    known = {n: (h.floor, c) for h, n, c in zip(histories, names, colours, strict=True) if h.floor is not None}
    same = len({floor for floor, _ in known.values()}) == 1
    for name, (floor, colour) in list(known.items())[: 1 if same else None]:
        paint = FLOOR if same else colour
        axes.axhline(floor, color=paint, linewidth=1.2, linestyle="--")
        axes.annotate(
            plain(f"entropy floor {floor:.3f}" + ("" if same else f" of {name}")), (0.01, floor),
            xycoords=("axes fraction", "data"), textcoords="offset points", xytext=(2, 4), color=paint, fontsize=9,
        )  # fmt: skip
    if known:
        axes.set_ylim(bottom=0.85 * min(floor for floor, _ in known.values() if floor is not None))


def _draw_single(
    histories: Sequence[History],
    names: Sequence[str],
    colours: Sequence[str],
    picture: Path,
    title: str,
    column: str,
    by: str,
) -> Path:
    figure = new_figure(7, 3.4, title)
    axes = figure.subplots()
    margins(figure, top=0.5)
    unit, below = axis_unit(histories, by)
    label(axes, "", below)
    top = 0.0
    for history, name, colour in zip(histories, names, colours, strict=True):
        steps, values = history.columns(column)
        if not steps:
            continue
        xs = [x / unit for x in history.at(steps, by)]
        shown = values
        if column != "lr":
            shown = smooth(values)
            if len(histories) == 1:
                axes.plot(*thin(xs, values, _POINTS), color=colour, alpha=0.3, linewidth=0.8)
        axes.plot(*thin(xs, shown, _POINTS), color=colour, linewidth=1.6, label=plain(name))
        # A single spike shall not press everything else to the floor.
        top = max(top, 1.35 * sorted(values)[int(0.98 * (len(values) - 1))])
    axes.set_ylim(0, top or None)
    axes.set_xlim(left=0)
    if column == "lr":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axes.yaxis.get_offset_text().set(size=7, x=-0.06)
    else:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if top > 10 else f"{value:g}")
    if len(histories) > 1:
        legend(axes)
    save(figure, picture)
    return picture


def axis_unit(histories: Sequence[History], by: str) -> tuple[float, str]:
    """What the numbers of `History.at` are divided by, and the name of the axis."""
    if by == "tokens":
        most: float = max(h.last_step * h.tokens_per_step for h in histories)
        for unit, name in ((1e9, "billion tokens"), (1e6, "million tokens"), (1e3, "thousand tokens")):
            if most >= 2 * unit:
                return unit, name
        return 1.0, "tokens"
    if by == "time":
        most = max(h.seconds for h in histories)
        for unit, name in ((3600.0, "hours of training"), (60.0, "minutes of training")):
            if most >= 2 * unit:
                return unit, name
        return 1.0, "seconds of training"
    return 1.0, "step"
