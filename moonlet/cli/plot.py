"""`moonlet plot RUN...`"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from moonlet.plot.history import History
    from moonlet.plot.prompt import Reading


class By(StrEnum):
    """What x axes count."""

    step = "step"
    tokens = "tokens"
    time = "time"


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are compared.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write to.", show_default="RUN/plots and RUN/report.html; ./plots for several runs"
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="A text whose attention and next tokens are drawn.", show_default="the run's newest sample"),
    ] = None,
    html: Annotated[
        bool | None,
        typer.Option("--html/--no-html", help="Write a report page for each run.", show_default="for a single run"),
    ] = None,
    by: Annotated[By, typer.Option(help="What pictures count along their x axis.")] = By.step,
) -> None:
    """Draw a run's curves, expert load, attention and expectations, as PNG files and one page; or compare runs.

    The page is one self-contained file. It counts steps, tokens or time as its reader chooses.

    Example: `moonlet plot runs/quickstart --prompt "Once upon a time, there was a"`

    Example: `moonlet plot runs/quickstart runs/quickstart-2 --by time --out compared`
    """
    if len(runs) > 1 and prompt is not None:
        raise ValueError(f"--prompt is read by one model and {len(runs)} runs are given; give one RUN")

    from rich.console import Console

    from moonlet.plot.gallery import draw_comparison, draw_run
    from moonlet.plot.history import names_of, read_history

    console = Console()
    histories = [read_history(run) for run in runs]
    if len(histories) == 1:
        history = histories[0]
        reading = _read(history, prompt, console)
        made = draw_run(history, reading, out or history.run.path / "plots", by.value)
        if html is not False:
            made.append(_report(history, reading, (out or history.run.path) / "report.html"))
    else:
        names = names_of(histories)
        made = draw_comparison(histories, out or Path("plots"), by.value)
        for name, history in zip(names, histories, strict=True) if html else ():
            page = history.run.path / "report.html" if out is None else out / f"{name.replace('/', '-')}.html"
            made.append(_report(history, _read(history, None, console), page))
    for path in made:
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)


def _read(history: History, prompt: str | None, console: Console) -> Reading | None:
    from moonlet.plot.prompt import has_model, read_prompt

    if has_model(history.run.path):
        return read_prompt(history, prompt)
    if prompt is not None:
        raise ValueError(f"{history.run.path} has no checkpoint yet to read --prompt with; train it further")
    console.print(
        f"{history.run.path} has no checkpoint yet: no attention, no next tokens",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return None


def _report(history: History, reading: Reading | None, path: Path) -> Path:
    from moonlet.plot.report import write_report

    return write_report(history, reading, path)
