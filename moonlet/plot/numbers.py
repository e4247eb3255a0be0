"""Numbers as people read them: three digits and a unit."""

from __future__ import annotations

from collections.abc import Sequence

COUNT = ("", "K", "M", "B", "T")  # parameters, tokens
SI = ("", "K", "M", "G", "T", "P", "E")  # operations


def human(number: float, units: Sequence[str] = COUNT, base: int = 1000) -> str:
    """`number` with three digits and a unit: 1.03T."""
    power = 0
    while round(number, 1) >= base and power < len(units) - 1:
        number, power = number / base, power + 1
    digits = 0 if power == 0 and number >= 10 else max(0, 3 - len(str(int(number))))
    if power == 0 and number == int(number):
        digits = 0
    return f"{number:.{digits}f}{units[power]}"


def human_bytes(number: float) -> str:
    """`number` bytes: 68.6 KiB."""
    return human(number, (" B", " KiB", " MiB", " GiB", " TiB"), 1024)


def human_time(seconds: float) -> str:
    """A duration: 45 s, 12 min, 3.5 hours, 2.1 days, 4.0 years."""
    for size, unit in ((365.25 * 86400, "years"), (86400, "days"), (3600, "hours")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
