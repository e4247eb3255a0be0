"""Time that passed, less what the machine gave to others: what a test may hold against the program under test.

    ours(a, b) = (b - a) - sum over this process's threads of how long each stood ready to run while none ran it

Linux counts the waiting for each thread (/proc/PID/task/TID/schedstat, the second number, nanoseconds). Threads that
wait at the same time are all subtracted, so a busy machine makes the result too small and never too large; on an idle
one it is the plain time. Where nobody counts, nothing can be said of a single second: `counted` is False.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left, bisect_right
from pathlib import Path

_TASKS = Path(f"/proc/{os.getpid()}/task")


class Waiting:
    """How long this process's threads have waited for a processor, sampled now and then."""

    def __init__(self) -> None:
        self._by_thread: dict[str, int] = {}
        self._times: list[float] = []
        self._totals: list[float] = []
        self._total = 0
        self.counted = (_TASKS / str(os.getpid()) / "schedstat").exists()
        self.sample()

    def sample(self) -> float:
        """Look again. -> now, as `time.monotonic` tells"""
        for thread in os.listdir(_TASKS) if self.counted else ():
            try:
                waited = int((_TASKS / thread / "schedstat").read_text().split()[1])
            except OSError:
                continue  # it has ended since
            self._total += waited - self._by_thread.get(thread, 0)
            self._by_thread[thread] = waited
        self._times.append(time.monotonic())
        self._totals.append(self._total / 1e9)
        return self._times[-1]

    def ours(self, start: float, end: float) -> float:
        """Seconds between two moments, less the waiting between the samples that enclose them."""
        first = max(bisect_right(self._times, start) - 1, 0)
        last = min(bisect_left(self._times, end), len(self._times) - 1)
        return end - start - (self._totals[last] - self._totals[first])
