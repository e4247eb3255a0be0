"""`moonlet train RECIPE [a.b=c ...]`"""

from __future__ import annotations

import os
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
    smoke: Annotated[
        bool, typer.Option("--smoke", help="The recipe's trial of under a minute, without a network.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, in memory, time and disk, and start nothing.")
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Also find out where a step's time goes: a few steps after the first ten run under torch's profiler, "
            "a table is printed and written to RUN/profile with a trace to open, and training goes on. The weights "
            "are those of a run without it.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
) -> None:
    """Train a model as a recipe says.

    Example: `moonlet train recipes/tinystories.toml data.path=stories.txt train.minutes=3`

    Where a step's time goes: `moonlet train recipes/linear-nano.toml --profile`

    With torch.compile in its layers: `moonlet train recipes/linear-nano.toml train.compile=on`
    """
    from rich.console import Console

    from moonlet.config import load_recipe

    if as_json and not dry_run:
        raise ValueError("--json goes with --dry-run; a run writes its numbers to metrics.jsonl")
    if profile and dry_run:
        raise ValueError("--profile needs steps that are taken; leave out --dry-run")
    if profile:
        # torch's tracer talks on stderr about itself unless told otherwise before torch is loaded.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    loaded = load_recipe(recipe, overrides or [], smoke)
    folder, console = out or fresh_folder(loaded.name), Console()
    if dry_run:
        from moonlet.cli.plan import print_plan

        print_plan(loaded, folder, console, as_json)
        return
    from moonlet.cli import job
    from moonlet.cli.report import print_outcome

    print_outcome(job.start(loaded, folder, console, profile), console)


def fresh_folder(name: str) -> Path:
    """runs/NAME, or runs/NAME-2, -3 ... when that is taken: no run is ever written over."""
    folder, n = Path("runs") / name, 1
    while folder.exists():
        n += 1
        folder = Path("runs") / f"{name}-{n}"
    return folder
