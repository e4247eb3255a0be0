"""Reports as text for a terminal: one in detail, or several side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moonlet.eval.bits import Bits
from moonlet.eval.diversity import Diversity
from moonlet.eval.questions import QuestionScores
from moonlet.eval.recall import RecallScores
from moonlet.eval.report import Report
from moonlet.eval.told import TEMPERATURE, TOP_P, Told

Rows = list[list[str]]


def describe(report: Report) -> str:
    """One report, part by part."""
    b = report.bits
    head = [
        ["model", report.model],
        ["parameters", f"{report.counts.total:,}, of which a token passes through {report.counts.active:,}"],
        ["text" if b else "task", f"{report.text}{_extent(b)}"],
        ["context", f"{report.context} tokens"],
    ]
    if b is not None:
        head += [["loss", f"{b.loss:.4f} nats a token"], ["bits per byte", f"{b.bits_per_byte:.4f}"]]
        if report.floor is not None:
            over = 100 * (b.bits_per_byte / report.floor - 1)
            head.append(["entropy floor", f"{report.floor:.4f} ({over:.1f}% above it)"])
    parts = ["\n".join(f"{name:<13} {value}" for name, value in head)]
    if report.recall is not None:
        parts.append(_recall(report.recall))
    elif not report.lossless:
        parts.append(_LOSSY)
    if report.questions is not None:
        parts.append(_questions(report.questions))
    if report.told is not None:
        parts += _told(report.told)
    if report.positions is not None:
        parts.append(_positions([report]))
    return "\n\n".join(parts)


def compare(reports: Sequence[Report]) -> str:
    """Several reports in one table, a column each; lines that nobody asked for are left out."""
    rows: Rows = [["", *(report.model for report in reports)]]
    for name, value in _FIGURES:
        values = [value(report) for report in reports]
        if any(values):
            rows.append([name, *(v or "-" for v in values)])
    parts = [aligned(rows)]
    texts = {(r.text, r.bits and r.bits.bytes) for r in reports}
    if len(texts) > 1:
        named = "; ".join(f"{r.model}: {r.text}" for r in reports)
        if any(r.bits for r in reports):
            parts.append(f"Not measured on one text ({named}): their losses do not compare; give --data FILE.")
        else:
            parts.append(f"Not asked the same ({named}): their accuracies do not compare.")
    if any(r.bits and not r.lossless for r in reports):
        parts.append(_LOSSY)
    elif len({r.bits and r.bits.tokens for r in reports}) > 1:
        parts.append("Their tokenizers differ: compare bits per byte, not loss.")
    if any(r.positions for r in reports):
        parts.append(_positions([r for r in reports if r.positions]))
    return "\n\n".join(parts)


_LOSSY = (
    "The tokenizer drops what it cannot write (capitals, spaces, rare words), so there is less to predict: its bits "
    "per byte\nare not comparable with those of a lossless tokenizer."
)


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"


def _told_share(name: str) -> Callable[[Report], str]:
    return lambda r: _share(r.told.consistency[name]) if r.told and r.told.consistency else ""


_FIGURES: tuple[tuple[str, Callable[[Report], str]], ...] = (
    ("answers recalled", lambda r: _share(r.recall.all.accuracy) if r.recall else ""),
    ("  by chance", lambda r: _share(r.recall.task.chance) if r.recall else ""),
    ("sequences recalled", lambda r: _share(r.recall.all.whole) if r.recall else ""),
    ("bits per byte", lambda r: f"{r.bits.bits_per_byte:.4f}" + ("" if r.lossless else " (lossy)") if r.bits else ""),
    ("  entropy floor", lambda r: "" if r.floor is None else f"{r.floor:.4f}"),
    ("loss, nats a token", lambda r: f"{r.bits.loss:.4f}" if r.bits else ""),
    ("loss, nats an answer", lambda r: f"{r.recall.all.loss:.4f}" if r.recall else ""),
    ("answers chosen", lambda r: _share(r.questions.chosen["all"].share) if r.questions else ""),
    ("  by chance", lambda r: _share(r.questions.chosen["all"].chance) if r.questions else ""),
    ("answers exact", lambda r: _share(r.questions.exact["all"].share) if r.questions else ""),
    ("  by blind guess", lambda r: _share(r.questions.exact["all"].chance) if r.questions else ""),
    ("stories consistent", _told_share("consistent")),
    ("stories in grammar", _told_share("grammar")),
    ("distinct-2", lambda r: f"{r.told.diversity.distinct[1]:.3f}" if r.told else ""),
    ("  of real text", lambda r: f"{r.told.reference.distinct[1]:.3f}" if r.told else ""),
    ("repetition", lambda r: _share(r.told.diversity.repetition) if r.told else ""),
    ("  of real text", lambda r: _share(r.told.reference.repetition) if r.told else ""),
    ("longest copy, words", lambda r: _or_dash(r.told.diversity.copied_longest) if r.told else ""),
    ("  of real text", lambda r: _or_dash(r.told.reference.copied_longest) if r.told else ""),
    ("parameters", lambda r: f"{r.counts.total:,}"),
    ("  active a token", lambda r: f"{r.counts.active:,}"),
    ("context", lambda r: f"{r.context:,}"),
)


def _extent(bits: Bits | None) -> str:
    return "" if bits is None else f": {bits.documents:,} documents, {bits.bytes:,} bytes, {bits.tokens:,} tokens"


def _recall(scores: RecallScores) -> str:
    rows: Rows = [[scores.task.unit, "answers", "right", "by chance", "sequences", "right", "nats an answer"]]
    for size, part in [*((str(size), part) for size, part in scores.sizes.items()), ("all", scores.all)]:
        rows.append(
            [f"  {size}", f"{part.answers:,}", _share(part.accuracy), _share(scores.task.chance),
             f"{part.sequences:,}", _share(part.whole), f"{part.loss:.4f}"]
        )  # fmt: skip
    note = "Held-out sequences, drawn anew; each answer is predicted with the right ones before it in view."
    return f"{aligned(rows)}\n{note}"


def _questions(scores: QuestionScores) -> str:
    rows: Rows = [["questions", "asked", "chosen", "by chance", "exact", "by blind guess"]]
    for kind, chosen in scores.chosen.items():
        exact = scores.exact[kind]
        cells = [_share(v) for v in (chosen.share, chosen.chance, exact.share, exact.chance)]
        rows.append([f"  {kind}", f"{chosen.total:,}", *cells])
    form = "plainly, on a line of their own" if scores.asked_plainly else "as Q: and A:"
    note = (
        f"Put {form}, after {scores.stories} held-out stories. chosen: the likeliest candidate a token; exact: written "
        "greedily, word for word."
    )
    return f"{aligned(rows)}\n{note}"


def _told(told: Told) -> list[str]:
    count = len(told.texts)
    drawn = f"{count} texts told at temperature {TEMPERATURE:g}, top-p {TOP_P:g}"
    parts = []
    if told.consistency is not None:
        rows: Rows = [["stories", "share"], *([f"  {name}", _share(v)] for name, v in told.consistency.items())]
        parts.append(aligned(rows))
    rows = [["texts", "told", "validation"]]
    rows += [[f"  {name}", value(told.diversity), value(told.reference)] for name, value in _DIVERSITY]
    parts.append(f"{aligned(rows)}\n{drawn}; beside them as much validation text.")
    return parts


_DIVERSITY: tuple[tuple[str, Callable[[Diversity], str]], ...] = (
    ("words a text", lambda d: f"{d.words / d.texts:.0f}"),
    *((f"distinct-{n}", lambda d, n=n: f"{d.distinct[n - 1]:.3f}") for n in (1, 2, 3, 4)),
    ("4-grams repeated", lambda d: _share(d.repetition)),
    ("longest repeat, mean words", lambda d: f"{d.repeated_mean:.1f}"),
    ("longest repeat of all", lambda d: f"{d.repeated_longest}"),
    ("longest copy of training text, mean", lambda d: "-" if d.copied_mean is None else f"{d.copied_mean:.1f}"),
    ("longest copy of all", lambda d: _or_dash(d.copied_longest)),
)


def _positions(reports: Sequence[Report]) -> str:
    """Loss and bits per byte by position, a pair of columns each report."""
    title = "positions, packed" if reports[0].packed else "positions"
    many = len(reports) > 1
    named = [f"{r.model}: " if many else "" for r in reports]
    rows: Rows = [[title, "tokens", *(f"{n}{what}" for n in named for what in ("nats a token", "bits per byte"))]]
    spans = sorted({(b.first, b.last) for r in reports for b in r.positions or ()})
    for first, last in spans:
        found = [next((b for b in r.positions or () if (b.first, b.last) == (first, last)), None) for r in reports]
        cells = []
        for bucket in found:
            bits = bucket.bits_per_byte if bucket else None
            cells += [f"{bucket.loss:.4f}" if bucket else "-", "-" if bits is None else f"{bits:.4f}"]
        tokens = next(b.tokens for b in found if b)
        rows.append([f"  {first}-{last}", f"{tokens:,}", *cells])
    return aligned(rows)


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def aligned(rows: Rows) -> str:
    """Rows as columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
