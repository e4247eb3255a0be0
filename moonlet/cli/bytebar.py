"""A bar for work that is measured in bytes: on a terminal with the time that is left, elsewhere a line now and then."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

# Seconds between lines when the output is no terminal.
_QUIET = 15.0


class ByteBar:
    """Shows one piece of work after another; a new label of another first word begins a new bar.

    Args:
        console: where it is shown.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._work = ""
        self._said = time.monotonic()

    def __enter__(self) -> ByteBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, label: str, size: int, total: int | None) -> None:
        """Show that `size` of about `total` bytes (None: nobody knows) of the work `label` are done."""
        # An estimate that was too low must not show more than everything.
        total = None if total is None else max(total, size)
        work = label.partition(":")[0]
        if self._task is None or work != self._work:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task, self._work = self._bar.add_task(label, total=total, completed=size), work
        self._bar.update(self._task, description=label, completed=size, total=total)
        if not self._console.is_terminal and time.monotonic() - self._said > _QUIET:
            self._said = time.monotonic()
            share = f" of {total / 1e6:,.1f}" if total else ""
            self._console.print(f"{label}, {size / 1e6:,.1f}{share} MB", markup=False, highlight=False)
