"""attention.png: who attends to whom, a small map a head, layers downward; candidates.png: what is expected next.

In a map, the query reads from the top down and looks at keys to its left. Colours follow the square root of the
probability, so that the many small ones can be told from none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moonlet.plot.canvas import FLOOR, INK, MUTED, margins, new_figure, plain, save, shades, spread
from moonlet.plot.prompt import Reading

_MAX_LAYERS, _MAX_HEADS = 8, 8
# Tokens of a map: more would leave no room for their names.
_MAX_TOKENS = 20
_SHOWN = 6


def draw_attention(reading: Reading, picture: Path, title: str) -> Path:
    """Draw the maps of at most eight layers and eight heads, evenly chosen."""
    from matplotlib.colors import PowerNorm

    layers = [sorted(reading.attention)[i] for i in spread(len(reading.attention), _MAX_LAYERS)]
    heads = spread(next(iter(reading.attention.values())).shape[0], _MAX_HEADS)
    tokens = min(_MAX_TOKENS, len(reading.labels))
    cell, side = 1.8, 0.95
    width, height = side + cell * len(heads) + 0.1, 0.85 + cell * len(layers) + side
    figure = new_figure(width, height, f"{title}: attention by layer and head")
    figure.text(
        0.5 / width, 1 - 0.4 / height, "query downward, key to the right; darker is more (square root)", fontsize=8,
        color=MUTED, va="top",
    )  # fmt: skip
    grid = figure.subplots(len(layers), len(heads), squeeze=False)
    margins(figure, left=side, right=0.1, top=0.85, bottom=side, hspace=0.14, wspace=0.06)
    size = min(7.0, 62 * cell / tokens)
    labels = [_short(name, 12) for name in reading.labels[:tokens]]
    for row, layer in zip(grid, layers, strict=True):
        for axes, head in zip(row, heads, strict=True):
            seen = reading.attention[layer][head, :tokens, :tokens].numpy()
            axes.imshow(seen, cmap=shades(), norm=PowerNorm(0.5, 0, 1), aspect="auto")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"layer {layer}, head {head}", fontsize=7, color=INK, pad=2, loc="left")
            for spine in axes.spines.values():
                spine.set_color("#d5d9de")
        row[0].set_yticks(range(tokens), labels, fontsize=size)
        row[0].tick_params(length=0, pad=2)
    for axes in grid[-1]:
        axes.set_xticks(range(tokens), labels, fontsize=size, rotation=90)
        axes.tick_params(length=0, pad=2)
    save(figure, picture)
    return picture


def draw_candidates(reading: Reading, picture: Path, title: str) -> Path:
    """A row a token: the likeliest next tokens with their probability, the one that came framed, and its bits."""
    tokens = len(reading.labels)
    height = 0.95 + 0.27 * tokens
    figure = new_figure(9.5, height, f"{title}: what comes next")
    axes = figure.subplots()
    margins(figure, left=0.3, right=0.2, top=0.45, bottom=0.12)
    axes.set_axis_off()
    axes.set_xlim(-1.35, _SHOWN + 0.7)
    axes.set_ylim(tokens, -0.75)
    _heading(axes)
    colours = shades()
    for t, expected in enumerate(reading.expected):
        came = reading.ids[t + 1] if t + 1 < tokens else None
        axes.text(-0.12, t + 0.5, _short(reading.labels[t]), fontsize=9, ha="right", va="center", color=INK)
        for rank, candidate in enumerate(expected[:_SHOWN]):
            paint = colours(candidate.probability**0.5)
            _cell(axes, rank, t, paint, framed=candidate.token == came)
            ink = "white" if candidate.probability > 0.4 else INK
            axes.text(rank + 0.06, t + 0.5, _short(candidate.label), fontsize=8.5, va="center", color=ink)
            percent = f"{100 * candidate.probability:.0f}%" if candidate.probability >= 0.005 else ""
            axes.text(rank + 0.94, t + 0.5, percent, fontsize=7, va="center", ha="right", color=ink)
        if t + 1 < tokens:
            axes.text(_SHOWN + 0.62, t + 0.5, f"{reading.surprise[t]:.1f}", fontsize=8.5, ha="right", va="center")
    save(figure, picture)
    return picture


def _heading(axes: Any) -> None:
    for x, text, side in (
        (-0.12, "after", "right"), (0.0, "likeliest next tokens, the one that came framed", "left"),
        (_SHOWN + 0.62, "bits", "right"),
    ):  # fmt: skip
        axes.text(x, -0.2, text, fontsize=8, color=MUTED, ha=side)


def _cell(axes: Any, rank: int, t: int, paint: Any, framed: bool) -> None:
    from matplotlib.patches import Rectangle

    edge = FLOOR if framed else "white"
    axes.add_patch(
        Rectangle(
            (rank + 0.015, t + 0.06), 0.97, 0.88, facecolor=paint, edgecolor=edge, linewidth=1.8 if framed else 0.5
        )
    )


def _short(text: str, limit: int = 13) -> str:
    return plain(text if len(text) < limit else text[: limit - 1] + "…")
