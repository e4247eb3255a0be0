"""A profile in words and numbers: what RUN/profile/profile.md holds and the terminal shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from moonlet.train.ranges import NEWTON_SCHULZ, PARTS, REST
from moonlet.train.trace import IDLE, PartTime, StepTimes

OPERATORS = 15
# Steps that lie so far apart say more about the machine's other work, or the profiler's, than about the model.
_SWING = 1.5
_PARTS_NOTE = "Times in ms. GFLOP: matrix products of the model, forward and backward; rate: share of the rate above."
_OPERATORS_NOTE = "Time in the operator itself, without the operators it calls."


@dataclass(frozen=True)
class Profile:
    """A step of one run, in seconds, bytes and floating-point operations; None is unknown.

    step: the one that `times` are of, of so many that were `traced`. plain: what steps took outside of the profiler.
    flops: of a step by part, forward and backward. rate: operations a second of large products in the compute dtype,
    measured. memory: on a CPU what tensors held at most beyond what was there before the step; on a GPU all that was
    allocated at most.
    """

    name: str
    folder: Path
    step: int
    traced: int
    device: str
    dtype: str
    threads: int
    torch: str
    sequences: int
    micro_batches: int
    seq_len: int
    times: StepTimes
    plain: tuple[float, ...]
    flops: Mapping[str, int]
    rate: float
    memory: int | None
    resident: int | None
    keeps_memory: bool | None
    compiled: bool = False

    @property
    def plain_seconds(self) -> float:
        """The middle of them."""
        return median(self.plain)


@dataclass(frozen=True)
class Table:
    """Text by rows, the last of which is their sum; the first column stands left, the others right."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def header(p: Profile) -> Iterator[tuple[str, str]]:
    """What stands above the tables: a name and a line each."""
    t, tokens = p.times, p.sequences * p.seq_len
    pieces = f" in {p.micro_batches} micro-batches" if p.micro_batches > 1 else ""
    yield "machine", f"{p.device}, {p.dtype}, {p.threads} thread{'s' * (p.threads > 1)}, torch {p.torch}"
    if p.compiled:
        yield "compiled", "yes: rope, layout and the norms of latents count as projections, which they are fused with"
    yield "step", f"{tokens:,} tokens ({p.sequences} x {p.seq_len:,}{pieces})"
    yield (
        "speed",
        f"{tokens / p.plain_seconds:,.0f} tokens a second, {1e3 * p.plain_seconds:,.1f} ms a step "
        f"(median of {len(p.plain)} without the profiler, {1e3 * min(p.plain):,.1f} to {1e3 * max(p.plain):,.1f})",
    )
    which = f"step {p.step}" + (f", the middle one of {p.traced}" if p.traced > 2 else "")
    slower = t.seconds / p.plain_seconds - 1
    yield "profiled", f"{1e3 * t.seconds:,.1f} ms ({which}; {slower:+.0%} under the profiler), which the tables divide"
    if max(p.plain) > _SWING * min(p.plain) or slower > _SWING - 1:
        yield "caution", "these times swing: other processes wanted the cores, or operators are tiny; take them again"
    yield "products", _products(p)
    yield "memory", _memory(p)


def tables(p: Profile) -> list[Table]:
    """By part and by operator."""
    return [_by_part(p), _by_operator(p)]


def markdown(p: Profile) -> str:
    """All of it as a page."""
    lines = [f"# Where a step of {p.name} goes", ""]
    lines += [f"- {name}: {value}" for name, value in header(p)]
    for table in tables(p):
        lines += ["", f"## {table.title}", "", table.note, "", *_aligned(table)]
    lines += ["", f"trace.json, beside this file, holds {_steps(p)} for chrome://tracing or https://ui.perfetto.dev."]
    return "\n".join(lines) + "\n"


def _by_part(p: Profile) -> Table:
    t = p.times
    order = [part for part in (*PARTS[:-1], IDLE, REST) if part in t.parts]
    rows = [_part_row(part, t.parts[part], p) for part in order]
    whole = PartTime(sum(x.forward for x in t.parts.values()), sum(x.backward for x in t.parts.values()))
    work = sum(p.flops.values())
    times = (_ms(x, t) for x in (whole.forward, whole.backward, whole.total))
    rows.append(("step", *times, "100.0%", "", _giga(work), _share_of_rate(work, whole.total, p)))
    columns = ("part", "forward", "backward", "ms", "share", "calls", "GFLOP", "rate")
    return Table("By part of the step", _PARTS_NOTE, columns, rows)


def _part_row(part: str, x: PartTime, p: Profile) -> tuple[str, ...]:
    t, work = p.times, p.flops.get(part)
    cost = ("", "") if work is None else (_giga(work), _share_of_rate(work, x.total, p))
    times = (_ms(x.forward, t), _ms(x.backward, t) if x.backward else "", _ms(x.total, t))
    return (part, *times, f"{x.total / t.seconds:.1%}", _count(x.calls), *cost)


def _by_operator(p: Profile) -> Table:
    t = p.times
    ranked = sorted(t.operators.items(), key=lambda item: -item[1].seconds)
    rows: list[tuple[str, ...]] = [
        (name, _ms(x.seconds, t), f"{x.seconds / t.seconds:.1%}", _count(x.calls)) for name, x in ranked[:OPERATORS]
    ]
    left = sum(x.seconds for _, x in ranked[OPERATORS:])
    if len(ranked) > OPERATORS:
        rows.append((f"{len(ranked) - OPERATORS} others", _ms(left, t), f"{left / t.seconds:.1%}", ""))
    rows.append(("step", _ms(t.seconds, t), "100.0%", ""))
    return Table("By operator", _OPERATORS_NOTE, ("operator", "ms", "share", "calls"), rows)


def _products(p: Profile) -> str:
    orthogonal = p.flops.get(NEWTON_SCHULZ, 0)
    model = sum(p.flops.values()) - orthogonal
    more = f", and {_giga(orthogonal)} in Newton-Schulz" if orthogonal else ""
    return (
        f"{_giga(model)} GFLOP a step in the model{more}; the model's alone are {model / p.plain_seconds / p.rate:.0%} "
        f"of the {p.rate / 1e9:,.0f} GFLOP/s that large products in {p.dtype} reached here"
    )


def _memory(p: Profile) -> str:
    parts = []
    if p.memory is not None:
        parts.append(
            f"a step takes {_bytes(p.memory)} at most beyond what stays between steps"
            if p.device == "cpu"
            else f"{_bytes(p.memory)} allocated on the device at most"
        )
    if p.resident is not None:
        parts.append(f"the process had {_bytes(p.resident)} at most so far")
    if p.keeps_memory is not None:
        parts.append(f"freed memory {'stays' if p.keeps_memory else 'does not stay'} with it")
    return ", ".join(parts) or "unknown"


def _steps(p: Profile) -> str:
    return "the profiled step" if p.traced == 1 else f"the {p.traced} profiled steps"


def _share_of_rate(work: int, seconds: float, p: Profile) -> str:
    return f"{work / seconds / p.rate:.0%}" if seconds and p.rate else ""


def _ms(seconds: float, t: StepTimes) -> str:
    digits = 1 if t.seconds > 0.1 else 2 if t.seconds > 0.01 else 3
    return f"{1e3 * seconds:,.{digits}f}"


def _giga(work: int) -> str:
    return f"{work / 1e9:,.1f}" if work > 1e9 else f"{work / 1e9:.3f}"


def _bytes(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _count(calls: int) -> str:
    return f"{calls:,}" if calls else ""


def _aligned(table: Table) -> Iterator[str]:
    """The rows of a Markdown table that also reads well as it is."""
    rows = [tuple(cell.replace("|", "\\|") for cell in row) for row in table.rows]
    widths = [max(len(cell) for cell in column) for column in zip(table.columns, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        fitted = (c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(fitted)} |"

    yield line(table.columns)
    yield line(["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)])
    yield from (line(row) for row in rows)
