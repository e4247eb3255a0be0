"""The next batches, read while a step runs.

A thread of its own reads the batches that will be asked for next. A batch is a function of its step alone, so what is
read ahead is what would have been read, a resumed run begins like any other, and what was read for nothing is dropped.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from moonlet.data.loader import Batch, Batches

AHEAD = 2  # batches; one is enough where reading is always quicker than a step


class Prefetch:
    """Batches of `source`, of which the next ones are read ahead; itself such a source.

    The thread begins with the first batch and ends with `close`, or with a `with` block. It alone reads `source`. What
    goes wrong there is raised by the `batch` that asks for it, as without a thread.
    """

    def __init__(self, source: Batches, ahead: int = AHEAD) -> None:
        self.batch_size = source.batch_size
        self.waited = 0.0  # seconds that `batch` took, in all
        self._source, self._ahead = source, ahead
        self._thread: ThreadPoolExecutor | None = None
        self._begun: dict[int, Future[Batch]] = {}  # by step

    def batch(self, step: int) -> Batch:
        """As the source's; steps that follow each other are found ready."""
        begin = time.perf_counter()
        try:
            found = self._begin(step)
            for other in set(self._begun) - set(range(step, step + self._ahead + 1)):
                self._begun.pop(other).cancel()  # somebody went elsewhere
            for later in range(step + 1, step + self._ahead + 1):
                self._begin(later)
            return found.result()
        finally:
            self._begun.pop(step, None)
            self.waited += time.perf_counter() - begin

    def close(self) -> None:
        """End the thread, after the batch that it may be at; another `batch` begins a new one."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._thread = None
        self._begun.clear()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, step: int) -> Future[Batch]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "batches")
        if step not in self._begun:
            self._begun[step] = self._thread.submit(self._source.batch, step)
        return self._begun[step]
