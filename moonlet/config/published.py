"""The learning-rate schedules of published runs, as shapes: a run of any length can follow them.

Positions are fractions of the whole run, rates fractions of the peak. Each number is given by those it comes from.

    k2         peak 2e-4. Warm-up over 500 steps of 67M tokens; constant until 10T tokens; cosine to 2e-5 at 15.5T;
               annealing over 400B tokens at context 4k and 60B at 32k, from 2e-5 to 7e-6 (arXiv 2507.20534). How the
               annealing falls is not published; here it is a straight line.
    moonlight  peak 4.2e-4. Warm-up over 2k steps, 33B tokens; cosine to 4.2e-5 at 5.2T tokens; up to 1e-4 within 100
               steps of 4096 sequences of 8k tokens; a straight line to 0, 500B tokens after the cosine's end
               (arXiv 2502.16982).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A part of a run: from where the phase before it ends until `until`, where the rate has become `rate`.

    `shape` is "linear" or "cosine": the way from one rate to the other.
    """

    until: float
    rate: float
    shape: str = "linear"


@dataclass(frozen=True)
class Schedule:
    """`warmup`: its share of the run; the phases follow it, the first one from the peak, the last one until 1."""

    warmup: float
    phases: tuple[Phase, ...]


_K2 = 15.5e12 + 400e9 + 60e9  # tokens of the whole run
_MOONLIGHT = 5.2e12 + 500e9
_REHEAT = 100 * 4096 * 8192  # tokens over which Moonlight's rate goes up again

PUBLISHED: dict[str, Schedule] = {
    "k2": Schedule(
        warmup=500 * 67e6 / _K2,
        phases=(
            Phase(10e12 / _K2, 1.0),
            Phase(15.5e12 / _K2, 2e-5 / 2e-4, "cosine"),
            Phase(1.0, 7e-6 / 2e-4),
        ),
    ),
    "moonlight": Schedule(
        warmup=33e9 / _MOONLIGHT,
        phases=(
            Phase(5.2e12 / _MOONLIGHT, 4.2e-5 / 4.2e-4, "cosine"),
            Phase((5.2e12 + _REHEAT) / _MOONLIGHT, 1e-4 / 4.2e-4),
            Phase(1.0, 0.0),
        ),
    ),
}
