"""The hand all pictures are drawn in: colours, figures, labels, and how they reach the disk."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from moonlet.text.atomic import atomic_path

INK, MUTED, TRAIN, VALID, FLOOR = "#1b1f24", "#8a929c", "#3b6fd4", "#c2410c", "#15803d"
# Of runs, or of layers, side by side.
PALETTE = (TRAIN, VALID, FLOOR, "#7c3aed", "#0e7490", "#be185d", "#a16207", "#475569")


def new_figure(width: float, height: float, title: str) -> Any:
    """An empty matplotlib figure of so many inches, with its heading."""
    # The object interface: pyplot would keep every figure alive and pick a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120)
    FigureCanvasAgg(figure)
    figure.suptitle(plain(title), color=INK, fontsize=11, x=0.5 / width, y=1 - 0.12 / height, ha="left", va="top")
    return figure


def margins(
    figure: Any, *, left: float = 0.62, right: float = 0.15, top: float = 0.72, bottom: float = 0.48, **gaps: float
) -> None:
    """Fix the margins, in inches. Measuring every label instead would cost as much as all the rest."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=left / width, right=1 - right / width, top=1 - top / height, bottom=bottom / height, **gaps
    )


def save(figure: Any, picture: Path) -> None:
    """Write a PNG, atomically."""
    with atomic_path(picture) as temporary, warnings.catch_warnings():
        # A token may hold any character; one without a glyph is drawn as a box, which says enough.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(temporary, format="png")


def label(axes: Any, what: str, below: str = "step") -> None:
    """Title, name of the x axis, grid and a light frame."""
    axes.set_title(plain(what), loc="left", fontsize=9, color=INK)
    axes.set_xlabel(below, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def legend(axes: Any, **settings: Any) -> None:
    """Names of the lines, without a frame."""
    axes.legend(fontsize=8, frameon=False, labelcolor=INK, handlelength=1.4, **settings)


def plain(text: str) -> str:
    """`text` as matplotlib shows it as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def shades() -> Any:
    """Colours of a probability: white for 0, dark blue for 1."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("moonlet", ["#ffffff", "#b9cdf3", TRAIN, "#152a5c"])


def balance_shades() -> Any:
    """Colours of a ratio: blue below 1, white at 1, orange above."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("balance", ["#1d3f8f", "#8fb0ec", "#f7f7f5", "#f0a376", "#9a3206"])


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` of 0 .. count - 1, evenly, the first and the last among them."""
    if count <= limit:
        return list(range(count))
    return sorted({round(i * (count - 1) / max(1, limit - 1)) for i in range(limit)})
