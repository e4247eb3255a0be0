"""What a person sees while a model trains: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from moonlet.config import Recipe
from moonlet.train.state import Progress as Counters

# Seconds between lines when the output is no terminal.
_QUIET = 15.0


class Display:
    """Shows loss, tokens/s, learning rate and time left."""

    def __init__(self, console: Console, recipe: Recipe) -> None:
        self.console = console
        self.recipe = recipe
        self._said = float("-inf")
        self._rate: float | None = None
        self._loss: float | None = None
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1.0, numbers="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def show(self, counters: Counters, record: dict[str, Any]) -> None:
        """Show one step."""
        # Averages, so that the eye can rest on the numbers.
        self._loss = _blend(self._loss, record["loss"])
        self._rate = _blend(self._rate, record["tokens_per_s"])
        done, left = self.done(counters)
        of = f"/{counters.total}" if counters.total else ""
        numbers = (
            f"step {counters.step}{of} · loss {self._loss:.3f} · {self._rate:,.0f} tokens/s · "
            f"lr {record['lr']:.1e} · {_clock(left)} left"
        )
        if self.console.is_terminal:
            self._bar.update(self._task, completed=done, numbers=numbers)
        elif time.monotonic() - self._said > _QUIET or done >= 1:
            self._said = time.monotonic()
            self.note(numbers)

    def done(self, counters: Counters) -> tuple[float, float]:
        """Share of the run that is done, and seconds that are left."""
        if counters.total:
            share = counters.step / counters.total
            return share, counters.elapsed / max(1, counters.step) * (counters.total - counters.step)
        budget = self.recipe.train.minutes * 60
        return min(1.0, counters.elapsed / budget), max(0.0, budget - counters.elapsed)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else 0.9 * old + 0.1 * new


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
