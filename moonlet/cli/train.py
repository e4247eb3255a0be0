"""`moonlet train RECIPE [a.b=c ...]`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to it, as a.b=c.", metavar="a.b=c", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder to make.", show_default="runs/NAME, the recipe's")
    ] = None,
) -> None:
    """Train a model as a recipe says.

    Example: `moonlet train recipes/tinystories.toml data.path=stories.txt train.minutes=3`
    """
    from rich.console import Console

    from moonlet.cli.report import print_outcome
    from moonlet.config import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from moonlet.cli import job

    console = Console()
    print_outcome(job.start(loaded, out or fresh_folder(loaded.name), console), console)


def fresh_folder(name: str) -> Path:
    """runs/NAME, or runs/NAME-2, -3 ... when that is taken: no run is ever written over."""
    folder, n = Path("runs") / name, 1
    while folder.exists():
        n += 1
        folder = Path("runs") / f"{name}-{n}"
    return folder
