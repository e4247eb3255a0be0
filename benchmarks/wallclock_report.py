"""The table and the picture of `wallclock.py`, from its finished runs."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muon_vs_adamw import crossing
from small_runs import Taken, table

from moonlet.plot.canvas import FLOOR, INK, MUTED, PALETTE, label, legend, margins, new_figure, plain, save


@dataclass
class Entry:
    """A contender at its best settings, and its runs, one a seed; lengths are fractions of the time."""

    name: str
    dense: bool
    changes: dict[str, dict[str, Any]]
    lr: float
    tried: dict[str, float]  # what, and bits per byte
    active: int
    total: int
    tokens_per_step: int
    rate: float | None  # tokens a second that its clock goes by; None: its runs kept the clock
    full: list[Taken] = field(default_factory=list)
    shorter: dict[float, list[Taken]] = field(default_factory=dict)

    @property
    def bits(self) -> float:
        """Median over the seeds."""
        return statistics.median(run.bits for run in self.full)

    def seconds(self, run: Taken) -> list[float]:
        """The clock at each evaluation of a run."""
        if self.rate is not None:
            return [step * self.tokens_per_step / self.rate for step in run.curve[0]]
        clock = {line["step"]: line["seconds"] for line in run.of("clock")}
        return [clock[step] for step in run.curve[0]]

    @property
    def tokens(self) -> float:
        """Read by a full run, median."""
        return self.tokens_per_step * statistics.median(run.curve[0][-1] if run.curve[0] else 0 for run in self.full)

    @property
    def speed(self) -> float:
        """Tokens a second; of runs that kept the clock, theirs."""
        if self.rate is not None:
            return self.rate
        return statistics.median(
            self.tokens_per_step * run.curve[0][-1] / self.seconds(run)[-1] if run.curve[0] else math.nan
            for run in self.full
        )

    def time_to(self, target: float) -> list[float]:
        """The fraction of the time in which each seed reaches `target`, read between whole runs; infinite: never.

        Where even the shortest run reaches it, that run's.
        """
        runs = {1.0: self.full, **self.shorter}
        out = []
        for seed in range(len(self.full)):
            losses = {length: taken[seed].bits for length, taken in runs.items()}
            if losses[1.0] > target:
                out.append(math.inf)
            elif len(losses) == 1:
                out.append(1.0)
            else:
                out.append(crossing(losses, target) or min(losses))
        return out


@dataclass(frozen=True)
class Found:
    """Everything that is reported."""

    entries: Sequence[Entry]
    target: float
    minutes: float
    tune_fraction: float
    what: str  # the text
    clock: str
    floor: float | None  # the text's entropy, where it is known


def report(found: Found) -> str:
    """The table, and what stands behind it."""
    minutes, seeds = found.minutes, len(found.entries[0].full)
    rows = [["", "parameters, active / all", "tokens/s", "tokens read", "learning rate",
             "bits per byte, median", "min - max", f"minutes to {found.target:.4f}", "share"]]  # fmt: skip
    for entry in found.entries:
        bits = [run.bits for run in entry.full]
        part = statistics.median(entry.time_to(found.target))
        reached = math.isfinite(part)
        rows.append([
            entry.name, f"{entry.active / 1e6:.2f} / {entry.total / 1e6:.2f} M", f"{entry.speed:,.0f}",
            f"{entry.tokens:,.0f}", f"{entry.lr:g}", f"{entry.bits:.4f}", f"{min(bits):.4f} - {max(bits):.4f}",
            f"{minutes * part:.2f}" if reached else "not reached", f"{part:.2f}" if reached else "",
        ])  # fmt: skip
    text = [
        f"{minutes:g} minutes of training steps on {found.what}, {seeds} seeds, the clock {found.clock}.",
        table(rows),
        "Bits per byte of all of the validation text. The value to reach is the best dense model's median, and the "
        "minutes to it are read between whole runs of several lengths.",
    ]
    shorter = []
    for entry in found.entries:
        ends = (f"{minutes * n:g} minutes {statistics.median(r.bits for r in runs):.4f}"
                for n, runs in sorted(entry.shorter.items()))  # fmt: skip
        shorter += [f"- {entry.name}: {', '.join(ends)}"] if entry.shorter else []
    if shorter:
        text.append("Shorter whole runs, median bits per byte:\n\n" + "\n".join(shorter))
    tried = [
        f"- {entry.name}: " + ", ".join(f"{what}: {bits:.4f}" for what, bits in entry.tried.items())
        for entry in found.entries
        if entry.tried
    ]
    if tried:
        text.append(f"Tried, in {minutes * found.tune_fraction:g} minutes (bits per byte):\n\n" + "\n".join(tried))
    return "\n\n".join(text)


def draw(found: Found, picture: Path) -> None:
    """Bits per byte by seconds: median line and band of the seeds; diamonds are the ends of shorter whole runs."""
    figure = new_figure(8.4, 4.4, f"Bits per byte by time of training: {found.what}")
    axes = figure.subplots()
    margins(figure, left=0.62, right=0.3, top=0.62)
    label(axes, "", "seconds of training steps")
    shown: list[float] = [found.target]
    for colour, entry in zip(itertools.cycle(PALETTE), found.entries, strict=False):
        shown += _draw_entry(axes, entry, colour, 60 * found.minutes)
    axes.axhline(found.target, color=MUTED, linewidth=1, linestyle="--")
    axes.annotate(f"{found.target:.3f}", (0.004, found.target), xycoords=("axes fraction", "data"),
                  textcoords="offset points", xytext=(0, 3), fontsize=8, color=INK)  # fmt: skip
    finite = [bits for bits in shown if math.isfinite(bits)]
    room = max(finite) - min(finite)
    axes.set_ylim(min(finite) - 0.08 * room - 1e-3, max(finite) + 0.1 * room + 1e-3)
    if found.floor is not None:
        axes.axhline(found.floor, color=FLOOR, linewidth=1, linestyle="--")
    axes.set_xlim(0, 1.03 * 60 * found.minutes)
    axes.set_ylabel("validation, bits per byte", fontsize=8)
    legend(axes, loc="upper right")
    save(figure, picture)


def _draw_entry(axes: Any, entry: Entry, colour: str, seconds: float) -> list[float]:
    """One contender; returns the values that should be seen."""
    shown: list[float] = []
    runs = [run for run in entry.full if not run.diverged]
    if runs:
        clocks = list(zip(*(entry.seconds(run) for run in runs), strict=False))
        columns = list(zip(*(run.curve[1] for run in runs), strict=False))
        xs, middle = [statistics.median(c) for c in clocks], [statistics.median(c) for c in columns]
        low, high = [min(c) for c in columns], [max(c) for c in columns]
        axes.fill_between(xs, low, high, color=colour, alpha=0.2, linewidth=0)
        name = plain(f"{entry.name}: {middle[-1]:.3f}")
        axes.plot(xs, middle, color=colour, marker="o", markersize=3, linewidth=1.6, label=name)
        shown += middle[len(middle) // 3 :]
    ends = [(seconds * n, statistics.median(r.bits for r in taken)) for n, taken in sorted(entry.shorter.items())]
    if ends:
        name = plain(f"{entry.name}, ends of shorter runs")
        axes.plot(
            *zip(*ends, strict=True), color=colour, marker="D", markersize=5, linewidth=1, linestyle=":", label=name
        )
        shown += [bits for _, bits in ends]
    return shown
