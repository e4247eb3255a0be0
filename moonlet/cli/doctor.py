"""`moonlet doctor`: what this machine has, how fast it is, and which fast paths will be used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from moonlet.train.doctor import Diagnosis


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
) -> None:
    """Look at this machine: cores, memory, speed (measured in two seconds), packages, and what will be used.

    Example: moonlet doctor --json
    """
    import json

    from rich.console import Console

    from moonlet.train.doctor import diagnose

    console = Console()
    if as_json:
        console.out(json.dumps(diagnose(device).as_values(), indent=2), highlight=False)
        return
    with console.status("measuring for two seconds"):
        diagnosis = diagnose(device)
    print_diagnosis(console, diagnosis)


def print_diagnosis(console: Console, diagnosis: Diagnosis) -> None:
    """Print it on one screen of 80 columns."""
    from rich.table import Table

    for title, rows in (
        ("machine", _machine(diagnosis)),
        ("measured", _measured(diagnosis)),
        ("will be used", _paths(diagnosis)),
        ("packages", _packages(diagnosis)),
    ):
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="dim", min_width=22)
        table.add_column()
        for row in rows:
            table.add_row(*row)
        console.print(f"\n[bold]{title}[/bold]", highlight=False)
        console.print(table)
    for note in diagnosis.notes:
        console.print(f"\n[yellow]! {note}[/yellow]", highlight=False)
    console.print()


def _machine(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    from moonlet.plot.numbers import human_bytes

    m = diagnosis.machine
    yield "system", f"{m.system}, Python {diagnosis.python}"
    yield "processor", f"{m.cpu}: {', '.join(m.instruction_sets) or m.torch_capability}"
    physical = f"{m.physical_cores} cores, " if m.physical_cores else ""
    limits = [f"{m.usable_cores} may be used"] if m.usable_cores != m.logical_cores else []
    limits += [f"the control group allows {m.quota:g}"] if m.quota is not None else []
    threads = f"torch uses {diagnosis.threads}"
    yield "cores", f"{physical}{m.logical_cores} threads; {'; '.join([*limits, threads])}"
    if m.memory:
        free = f", {human_bytes(m.available)} free" if m.available is not None else ""
        yield "memory", f"{human_bytes(m.memory)}{free}{' (limit of the control group)' if m.limited else ''}"
    for gpu in m.accelerators:
        size = f", {human_bytes(gpu.memory)}" if gpu.memory else ""
        yield "GPU", f"{gpu.name}{size}{'' if gpu.bf16 else ', no bf16'}"
    if not m.accelerators:
        yield "GPU", "none that torch can use"


def _measured(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    rates, allocator = diagnosis.rates, diagnosis.allocator
    where = f" on {diagnosis.device}"
    yield "memory bandwidth", f"{rates.bandwidth / 1e9:,.1f} GB/s{where}"
    bf16 = f", bf16 {rates.bf16 / 1e9:,.0f} GFLOP/s" if rates.bf16 else ""
    ratio = f" ({rates.bf16 / rates.fp32:.1f} x)" if rates.bf16 else ""
    yield "matrix products", f"fp32 {rates.fp32 / 1e9:,.0f} GFLOP/s{bf16}{ratio}"
    if not allocator.listened:
        yield "freed memory", "goes back to the system: this C library cannot be told to keep it"
    elif allocator.effective is None:
        yield "freed memory", "kept by the process while training"
    else:
        works = "kept while training" if allocator.effective else "should be kept and is not"
        yield "freed memory", f"{works}: {allocator.faults_before:,} page faults become {allocator.faults_after:,}"


def _paths(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    for path in diagnosis.paths:
        shown = f"[green]{path.choice}[/]" if path.choice != "off" else "off"
        yield path.what, f"{shown}: {path.why}" if path.why else shown


def _packages(diagnosis: Diagnosis) -> Iterator[tuple[str, Any]]:
    from rich.markup import escape

    yield "installed", _joined(f"{name} {version}" for name, version in diagnosis.versions.items())
    present = [f"{p.name} {p.version}" for p in diagnosis.packages if p.version]
    if present:
        yield "optional", _joined(present)
    for p in diagnosis.packages:
        if not p.version:
            yield p.name, f"missing: {escape(p.install)}"


def _joined(words: Iterable[str]) -> str:
    """A list whose entries are not broken over lines."""
    return ", ".join(word.replace(" ", "\N{NO-BREAK SPACE}") for word in words)
