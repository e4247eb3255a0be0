"""`moonlet resume RUN`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def resume(run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]) -> None:
    """Go on with a run that was stopped or killed, from its newest whole checkpoint.

    On a CPU the losses and the final weights are those of a run that was never interrupted, bit for bit.

    Example: `moonlet resume runs/tinystories`
    """
    from rich.console import Console

    from moonlet.train.run import Run

    opened = Run.open(run)
    from moonlet.cli import job
    from moonlet.cli.report import print_outcome

    console = Console()
    print_outcome(job.go_on(opened, console), console)
