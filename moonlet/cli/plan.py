"""What `moonlet train --dry-run` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moonlet.config import Recipe
from moonlet.plot.numbers import SI, human, human_bytes, human_time
from moonlet.train.estimate import Plan, plan_run


def print_plan(recipe: Recipe, out: Path, console: Console, as_json: bool = False) -> None:
    """Estimate the run that would be made in `out`, and print it."""
    if as_json:
        console.out(json.dumps(plan_run(recipe, out).as_values(), indent=2), highlight=False)
        return
    with console.status("timing a few steps"):
        plan = plan_run(recipe, out)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True, min_width=11)
    table.add_column()
    for row in plan_rows(plan):
        table.add_row(*row)
    console.print(
        f"[bold]{escape(plan.name)}[/] on {plan.device} in {plan.dtype}; nothing was started", highlight=False
    )
    console.print(table)


def plan_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    """The lines: what, and how much."""
    step = plan.flops.training * plan.step_tokens
    yield "parameters", f"{human(plan.parameters)}, {human(plan.active)} active a token"
    yield "FLOPs", f"{human(plan.flops.training, SI)} a token, {human(step, SI)} a step of {plan.step_tokens:,} tokens"
    yield "tokens", _tokens(plan)
    yield "time", _time(plan)
    yield "", _how(plan)
    yield "memory", _memory(plan)
    m = plan.memory
    parts = {"weights": m.weights, "gradients": m.gradients, "optimizer": m.optimizer, "activations": m.activations}
    yield "", ", ".join(f"{name} {human_bytes(size)}" for name, size in parts.items())
    yield "compile", plan.compile
    yield "disk", _disk(plan)


def _tokens(plan: Plan) -> str:
    if plan.tokens is None or plan.steps is None:
        return f"{plan.step_tokens:,} a step"
    text = f"{human(plan.tokens)} in {plan.steps:,} steps"
    if plan.epochs is None or plan.text_tokens is None:
        return text
    about = "" if plan.text_is_exact else "about "
    epochs = f"{plan.epochs:.2g}" if plan.epochs < 10 else f"{plan.epochs:,.0f}"
    return f"{text}; {about}{epochs} times the text's {human(plan.text_tokens)}"


def _time(plan: Plan) -> str:
    s = plan.speed
    step = f"{s.step_seconds:.3g} s" if s.step_seconds < 100 else human_time(s.step_seconds)
    rate = f"{step} a step, {human(plan.step_tokens / s.step_seconds)} tokens a second"
    return f"{human_time(plan.seconds)}: {rate}" if plan.seconds is not None else rate


def _how(plan: Plan) -> str:
    s = plan.speed
    share = f"{s.utilisation:.0%} of the {s.rate / 1e9:,.0f} GFLOP/s this machine reached"
    if not s.measured:
        return f"not measured, a step takes too long: counted at {share}"
    return f"measured on steps of this model ({share}); evaluations and samples come on top"


def _memory(plan: Plan) -> str:
    total = human_bytes(plan.memory.total)
    if plan.available is None:
        return f"about {total}"
    free = human_bytes(plan.available)
    if plan.fits:
        return f"about {total} of {free} free: [green]it fits[/]"
    m = plan.memory
    helps = m.total - m.activations < plan.available
    advice = "try a smaller train.micro_batch_size or train.seq_len" if helps else "the model is too large"
    return f"about {total} of {free} free: [red]it does not fit[/]; {advice}"


def _disk(plan: Plan) -> str:
    text = f"{human_bytes(plan.disk_bytes)} for checkpoints of {human_bytes(plan.checkpoint_bytes)} and the model"
    free = human_bytes(plan.disk_free)
    if plan.disk_bytes > plan.disk_free:
        return f"{text}: [red]only {free} are free[/]; see train.keep_last"
    return f"{text}, {free} free"
