"""The nearest valid name to a misspelled one, for errors that name the way out."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(what: str, given: str, valid: Iterable[str]) -> ValueError:
    """Return a ValueError saying that `given` is no known `what`, naming the nearest of `valid`, or all of them."""
    names = sorted(valid)
    # A key misspelled inside its section should find the full name, and the other way round.
    close = get_close_matches(given, names, n=1, cutoff=0.5)
    if not close:
        tails = {name.rsplit(".", 1)[-1]: name for name in names}
        close = [tails[match] for match in get_close_matches(given.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.6)]
    hint = f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(names)}"
    return ValueError(f"unknown {what} {given!r}; {hint}")
