"""`moonlet eval RUN [RUN...]`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from moonlet.eval.report import Request


def evaluate(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run folders or model directories.", show_default=False)
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A text file (documents between <|endoftext|> lines), .jsonl, .parquet, folder or glob.",
            show_default="the run's own validation text",
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens read at once.", show_default="what the run trained on, else 1024")
    ] = None,
    questions: Annotated[bool, typer.Option("--questions", help="Ask about held-out stories of the world.")] = False,
    stories: Annotated[int, typer.Option(help="How many stories to ask about.", min=1)] = 50,
    samples: Annotated[
        int, typer.Option(help="Let the model tell so many texts: consistency, variety, copies.", min=0)
    ] = 0,
    by_position: Annotated[bool, typer.Option("--by-position", help="Loss by position in the document.")] = False,
    packed: Annotated[
        bool, typer.Option("--packed", help="Loss by position in windows cut straight through all documents.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw loss by position into this PNG.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Of everything drawn; equal seeds give equal figures.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file as well.", show_default=False)
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(
            help="Run tasks of EleutherAI's lm-eval instead, by name, with commas; story_questions is built in.",
            show_default=False,
        ),
    ] = None,
    tasks_dir: Annotated[
        Path | None, typer.Option(help="A folder of your own lm-eval task files.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Examples a task of lm-eval, at most.", min=1, show_default="all")
    ] = None,
) -> None:
    """Measure models: loss and bits per byte, and on request what they understand and how they tell.

    A run's figures are written to RUN/eval.json as well. Several runs are compared in one table.

    Example: `moonlet eval runs/quickstart --questions --samples 50`
    """
    from rich.console import Console

    console = Console()
    if lm_eval is None:
        from moonlet.eval.report import Request

        if tasks_dir is not None or limit is not None:
            raise ValueError("--tasks-dir and --limit belong to --lm-eval TASK")
        request = Request(data, context, questions, stories, samples, by_position or plot is not None, packed, seed)
        figures = _measure(paths, request, plot, console)
    else:
        figures = _harness(paths, lm_eval, tasks_dir, limit, console)
    if json_file is not None:
        import json

        from moonlet.text.atomic import atomic_write

        atomic_write(json_file, json.dumps(figures, indent=2, sort_keys=True) + "\n")
        console.print(f"written: {json_file}", highlight=False, soft_wrap=True)


def _measure(paths: list[Path], request: Request, plot: Path | None, console: Console) -> dict[str, Any]:
    """Measure each model, print one report or one table, and return the figures by model."""
    from moonlet.eval.report import evaluate_folder, save_report
    from moonlet.eval.table import compare, describe

    reports = []
    for path in paths:
        with console.status(f"evaluating {path}"):
            reports.append(evaluate_folder(path, request))
        # At once: what is measured is not lost when a later model fails.
        save_report(reports[-1], path)
    text = describe(reports[0]) if len(reports) == 1 else compare(reports)
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    if plot is not None:
        from moonlet.plot.position import draw_positions

        draw_positions({r.model: r.positions or () for r in reports}, plot, reports[0].packed)
        console.print(f"\nwritten: {plot}", highlight=False, soft_wrap=True)
    return {report.model: report.to_dict() for report in reports}


def _harness(
    paths: list[Path], tasks: str, tasks_dir: Path | None, limit: int | None, console: Console
) -> dict[str, Any]:
    """Run lm-eval's tasks on each model, print one table, and return the figures by model."""
    from moonlet.eval.tasks import run_tasks, table

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    figures = {}
    for path in paths:
        with console.status(f"lm-eval on {path}"):
            figures[str(path)] = run_tasks(path, names, tasks_dir, limit)
    console.print(table(figures), highlight=False, markup=False, soft_wrap=True)
    return figures
