"""Loss by position: one line a model, positions on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from moonlet.plot.canvas import PALETTE, label, legend, margins, new_figure, save


class Bucket(Protocol):
    """Positions first .. last and their mean loss in nats a token; `moonlet.eval.position.Bucket`."""

    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def loss(self) -> float: ...


def draw_positions(models: Mapping[str, Sequence[Bucket]], picture: Path, packed: bool = False) -> None:
    """Draw the losses of one or several models, by name, into a PNG, atomically."""
    figure = new_figure(7.5, 4, "Loss by position")
    axes = figure.subplots()
    margins(figure)
    for (name, buckets), colour in zip(models.items(), PALETTE * len(models), strict=False):
        # A bucket is drawn over its whole width, so that wide ones are not mistaken for single positions.
        edges = [buckets[0].first, *(b.last for b in buckets)] if buckets else []
        axes.stairs([b.loss for b in buckets], edges, baseline=None, color=colour, linewidth=1.8, label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    below = "position in a window through all documents" if packed else "position in the document (tokens read before)"
    label(axes, "nats a token", below)
    if len(models) > 1:
        legend(axes)
    save(figure, picture)
