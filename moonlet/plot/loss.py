"""loss.png: training loss, validation bits per byte with the entropy floor (or, of a recall task, the share of answers
that are right), and the learning rate, by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moonlet.plot.canvas import FLOOR, MUTED, TRAIN, VALID, label, margins, new_figure, save
from moonlet.train.metrics import read_metrics

RECALLED = "held-out answers that are right (share)"


def draw_loss(metrics: Path, picture: Path, title: str, floor: float | None = None) -> None:
    """Draw `metrics` (a metrics.jsonl) into `picture`, atomically; does nothing while there is nothing to draw.

    Args:
        floor: the corpus's entropy floor in bits per byte, drawn as a line where it is known.
    """
    train = list(read_metrics(metrics, "train"))
    evals = list(read_metrics(metrics, "eval"))
    if len(train) < 2:
        return
    figure = new_figure(9, 4, title)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    margins(figure, left=0.5, right=0.14, wspace=0.28)
    _draw_training(left, train)
    _draw_validation(right, evals, floor)
    save(figure, picture)


def _draw_training(axes: Any, train: list[dict[str, Any]]) -> None:
    steps = [r["step"] for r in train]
    losses = [r["loss"] for r in train]
    axes.plot(steps, losses, color=TRAIN, alpha=0.3, linewidth=0.8)
    axes.plot(steps, smooth(losses), color=TRAIN, linewidth=1.6)
    axes.set_ylim(*limits(losses))
    label(axes, "training loss (nats a token)")
    rates = axes.twinx()
    rates.plot(steps, [r["lr"] for r in train], color=MUTED, linewidth=1, linestyle=":")
    rates.set_ylim(bottom=0)
    rates.set_ylabel("learning rate (dotted)", color=MUTED, fontsize=8)
    rates.tick_params(labelsize=7, colors=MUTED)
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rates.yaxis.get_offset_text().set(size=7, color=MUTED)
    for side in ("top", "left"):
        rates.spines[side].set_visible(False)
    rates.spines["right"].set_color(MUTED)


def _draw_validation(axes: Any, evals: list[dict[str, Any]], floor: float | None) -> None:
    recalled = bool(evals) and "accuracy" in evals[-1]
    what = "accuracy" if recalled else "bits_per_byte"
    label(axes, RECALLED if recalled else "validation (bits per byte)")
    if recalled:
        axes.set_ylim(-0.02, 1.1)
    if evals:
        steps, bits = [r["step"] for r in evals], [r[what] for r in evals]
        axes.plot(steps, bits, color=VALID, linewidth=1.6, marker="o", markersize=3.5)
        axes.annotate(
            f"{bits[-1]:.3f}", (steps[-1], bits[-1]), textcoords="offset points", xytext=(0, 8), ha="right",
            color=VALID, fontsize=9,
        )  # fmt: skip
    if floor is not None:
        axes.axhline(floor, color=FLOOR, linewidth=1.2, linestyle="--")
        axes.annotate(
            f"entropy floor {floor:.3f}", (0.01, floor), xycoords=("axes fraction", "data"),
            textcoords="offset points", xytext=(2, 4), color=FLOOR, fontsize=9,
        )  # fmt: skip
        axes.set_ylim(bottom=floor * 0.85)


def limits(losses: Sequence[float]) -> tuple[float, float]:
    """Where to cut the axis: the first steps fall from ln(vocabulary) and would flatten everything after them."""
    low = min(losses)
    high = sorted(losses)[int(0.93 * (len(losses) - 1))]
    return low - 0.05 * (high - low) - 1e-3, high + 0.3 * (high - low) + 1e-3


def smooth(values: list[float]) -> list[float]:
    """Running mean over about a fortieth of the curve, centred, narrower at the ends."""
    half = max(1, len(values) // 80)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    out = []
    for i in range(len(values)):
        lo, hi = max(0, i - half), min(len(values), i + half + 1)
        out.append((sums[hi] - sums[lo]) / (hi - lo))
    return out
