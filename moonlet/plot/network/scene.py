"""Boxes, lines and words of a drawing, and their SVG: plain shapes, classes for colour, two themes, no script.

Coordinates are pixels, y downward. A colour is a class; only ink and paper change with the reader's theme, the colours
of the parts are chosen to stand on both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

# Mid-tones, readable on white and on near-black; boxes are filled with a tint of theirs.
COLOURS = {
    "embedding": "#7c8796",
    "head": "#5b7fa3",
    "attention": "#3b82f6",
    "scores": "#22b8cf",
    "kda": "#8a63d2",
    "delta": "#c86fc9",
    "dense": "#e08a1e",
    "router": "#e0457b",
    "routed_experts": "#2fa866",
    "shared_experts": "#84a92c",
    "norms": "#98a2b0",
    "rope": "#a46cf0",
    "cache": "#d9542b",
}
_FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Box:
    """A rounded rectangle of the colour class `kind`."""

    x: float
    y: float
    w: float
    h: float
    kind: str
    style: str = ""  # "", "frame" (no fill), "cache" (dashed) or "solid" (a segment of a bar)


@dataclass(frozen=True)
class Words:
    """One line of text; `anchor` says what lies at x: start, middle or end. y is the baseline."""

    x: float
    y: float
    text: str
    size: float
    anchor: str = "middle"
    kind: str = "ink"
    bold: bool = False
    room: float = 0.0  # the width it must fit into; 0: free


@dataclass(frozen=True)
class Line:
    """A polyline, with an arrow head at its end or without."""

    points: tuple[tuple[float, float], ...]
    arrow: bool = True
    kind: str = "wire"


@dataclass
class Scene:
    """What has been drawn so far."""

    boxes: list[Box] = field(default_factory=list)
    words: list[Words] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    circles: list[tuple[float, float]] = field(default_factory=list)

    def box(self, x: float, y: float, w: float, h: float, kind: str, *labels: str, size: float = 13) -> None:
        """A box with up to two lines in its middle, the second smaller."""
        self.boxes.append(Box(x, y, w, h, kind))
        room, middle = w - 8, x + w / 2
        if len(labels) == 1:
            self.words.append(Words(middle, y + h / 2 + size * 0.36, labels[0], size, room=room))
        elif labels:
            self.words.append(Words(middle, y + h / 2 - 2, labels[0], size, room=room))
            self.words.append(Words(middle, y + h / 2 + size - 1, labels[1], size - 2, kind="muted", room=room))

    def frame(self, x: float, y: float, w: float, h: float, kind: str, style: str = "frame") -> None:
        """An empty outline."""
        self.boxes.append(Box(x, y, w, h, kind, style))

    def say(self, x: float, y: float, text: str, size: float = 12, anchor: str = "middle", **how: object) -> None:
        """A line of text."""
        self.words.append(Words(x, y, text, size, anchor, **how))  # type: ignore[arg-type]

    def wire(self, *points: tuple[float, float], arrow: bool = True, kind: str = "wire") -> None:
        """A line through `points`."""
        self.lines.append(Line(points, arrow, kind))

    def plus(self, x: float, y: float) -> None:
        """Where something is added."""
        self.circles.append((x, y))

    def svg(self, width: float, height: float, title: str, description: str) -> str:
        """The document."""
        body = [*(_line(line) for line in self.lines), *(_box(box) for box in self.boxes)]
        body += [_plus(x, y) for x, y in self.circles] + [_words(words) for words in self.words]
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
                f' height="{height:g}" role="img" aria-labelledby="title description" font-family="{_FONT}">',
                f'<title id="title">{escape(title)}</title>',
                f'<desc id="description">{escape(description)}</desc>',
                f"<style>{_style()}</style>",
                '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
                ' orient="auto"><path class="head-of-arrow" d="M0 0.5 8 4 0 7.5z"/></marker></defs>',
                f'<rect class="paper" width="{width:g}" height="{height:g}"/>',
                *body,
                "</svg>\n",
            ]
        )


def _style() -> str:
    """Every colour, as plain rules: readers of SVG other than browsers know no variables."""
    light = (
        ".paper{fill:#ffffff}.ink{fill:#1b1f24}.muted{fill:#5b6470}.wire{stroke:#5b6470}.head-of-arrow{fill:#5b6470}"
        ".stream{stroke:#1b1f24}.plus{fill:#ffffff;stroke:#1b1f24}.under{fill:#ffffff}.onsolid{fill:#ffffff}"
    )
    dark = (
        ".paper{fill:#14171c}.ink{fill:#e8ebf0}.muted{fill:#a3adba}.wire{stroke:#a3adba}.head-of-arrow{fill:#a3adba}"
        ".stream{stroke:#e8ebf0}.plus{fill:#14171c;stroke:#e8ebf0}.under{fill:#14171c}"
    )
    rules = [".wire{fill:none;stroke-width:1.4}.stream{fill:none;stroke-width:3}.plus{stroke-width:1.8}"]
    for kind, colour in COLOURS.items():
        rules.append(f".b-{kind}{{fill:{colour};fill-opacity:.17;stroke:{colour};stroke-width:1.4}}")
        rules.append(f".f-{kind}{{fill:none;stroke:{colour};stroke-width:1.2;stroke-opacity:.6}}")
        rules.append(f".s-{kind}{{fill:{colour}}}.t-{kind}{{fill:{colour}}}")
    rules.append(".dashed{stroke-dasharray:5 4;stroke-opacity:1}")
    return "".join([light, *rules, f"@media (prefers-color-scheme:dark){{{dark}}}"])


def _box(box: Box) -> str:
    place = f'x="{box.x:g}" y="{box.y:g}" width="{box.w:g}" height="{box.h:g}"'
    if box.style == "solid":
        return f'<rect class="s-{box.kind}" {place}/>'
    if box.style:
        dashed = " dashed" if box.style == "cache" else ""
        return f'<rect class="f-{box.kind}{dashed}" {place} rx="9"/>'
    # Opaque paper under the tint, so that a line passing behind does not show through.
    return f'<rect class="under" {place} rx="6"/><rect class="b-{box.kind}" {place} rx="6"/>'


def _words(words: Words) -> str:
    weight = ' font-weight="600"' if words.bold else ""
    return (
        f'<text class="{words.kind}" x="{words.x:g}" y="{words.y:g}" font-size="{words.size:g}"'
        f' text-anchor="{words.anchor}"{weight}>{escape(words.text)}</text>'
    )


def _line(line: Line) -> str:
    path = " ".join(f"{'M' if i == 0 else 'L'}{x:g} {y:g}" for i, (x, y) in enumerate(line.points))
    arrow = ' marker-end="url(#arrow)"' if line.arrow else ""
    return f'<path class="{line.kind}" d="{path}" stroke-linejoin="round"{arrow}/>'


def _plus(x: float, y: float) -> str:
    return (
        f'<circle class="plus" cx="{x:g}" cy="{y:g}" r="9"/>'
        f'<path class="plus" d="M{x - 5:g} {y:g}H{x + 5:g}M{x:g} {y - 5:g}V{y + 5:g}"/>'
    )
