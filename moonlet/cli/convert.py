"""`moonlet convert SRC DST --format FORMAT`: a model in another form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from moonlet.hub.convert import Converted
    from moonlet.hub.gguf.write import Written

_SIZE = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([KMGT]?)(i?)B?$", re.IGNORECASE)
_MAX_SIZE = "5GB"
_GGUF = "gguf-"


def convert(
    source: Annotated[Path, typer.Argument(help="A model directory or a run folder.", show_default=False)],
    destination: Annotated[Path, typer.Argument(help="The folder, or the GGUF file, to write.", show_default=False)],
    format: Annotated[
        str,
        typer.Option(
            help="bf16, fp32, fp8 (blocks), int4 or mxfp4 (routed experts); gguf-f32, -f16, -bf16, -q8_0 or -q4_0.",
            show_default=False,
        ),
    ],
    max_shard: Annotated[str, typer.Option(help="Largest file of weights: 5GB, 500MB, 2GiB.")] = _MAX_SIZE,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a folder that is not empty, or over a GGUF file.")
    ] = False,
    experts: Annotated[
        str | None,
        typer.Option(help="Type of a GGUF's routed experts: f32, f16, bf16, q8_0, q4_0; as the rest unless given."),
    ] = None,
) -> None:
    """Write a model in another form, tensor by tensor, so that its size does not matter.

    Example: `moonlet convert runs/quickstart exported --format bf16`

    Example: `moonlet convert runs/quickstart quickstart.gguf --format gguf-q8_0`
    """
    from rich.console import Console

    from moonlet.folder import model_folder
    from moonlet.hub.convert import convert as convert_folder
    from moonlet.hub.encoding import FORMS
    from moonlet.hub.gguf.types import TYPES

    size = _bytes(max_shard)
    folder, name = model_folder(source), source.resolve().name
    console = Console(soft_wrap=True)
    kind = format.lower()
    if kind.startswith(_GGUF):
        _to_gguf(console, folder, name, destination, kind, experts, overwrite)
        return
    if experts is not None:
        raise ValueError(f"--experts is for GGUF files; {kind} says itself how experts are stored")
    if kind not in FORMS:
        known = ", ".join((*FORMS, *(_GGUF + name.lower() for name in TYPES)))
        raise ValueError(f"--format is {format!r}; valid: {known}")
    with _Bar(console, f"writing {kind}") as bar:
        done = convert_folder(folder, destination, kind, size, overwrite, name, bar.show, bar.note)
    _summary(console, destination, kind, done)


def _to_gguf(
    console: Console, folder: Path, name: str, destination: Path, kind: str, experts: str | None, overwrite: bool
) -> None:
    from moonlet.hub.gguf.write import write_gguf

    if destination.is_dir():
        raise ValueError(f"{destination} is a folder; a GGUF is one file, such as {destination / 'model.gguf'}")
    if destination.exists() and not overwrite:
        raise ValueError(f"{destination} exists; give another name, or --overwrite")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with _Bar(console, f"writing {kind}") as bar:
        done = write_gguf(folder, None, destination, kind.removeprefix(_GGUF), name, bar.show, experts)
        for line in done.notes:
            bar.note(line)
    _gguf_summary(console, done)


def _gguf_summary(console: Console, done: Written) -> None:
    from moonlet.plot.numbers import human_bytes

    types = ", ".join(f"{count} {kind}" for kind, count in done.types.items())
    line = f"{done.path}: {done.architecture}, {human_bytes(done.size)}, tensors: {types}"
    console.print(line, markup=False, highlight=False)


def _summary(console: Console, destination: Path, form: str, done: Converted) -> None:
    from moonlet.plot.numbers import human_bytes

    files = len(list(destination.glob("model*.safetensors")))
    console.print(
        f"{destination}: {done.weights:,} weights in {form}, {done.nbytes:,} bytes ({human_bytes(done.nbytes)}) in "
        f"{files} {'file' if files == 1 else 'files'}, {done.bits:.2f} bits a weight",
        markup=False,
        highlight=False,
    )


class _Bar:
    """A bar of bytes on a terminal; elsewhere nothing but notes."""

    def __init__(self, console: Console, title: str) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = console
        self._bar = Progress(
            TextColumn(title), BarColumn(bar_width=None), DownloadColumn(), TimeRemainingColumn(), console=console,
            transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, done: int, total: int) -> None:
        """Move on."""
        self._bar.update(self._task, completed=done, total=total)

    def note(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, markup=False, highlight=False)


def _bytes(text: str) -> float:
    """The number of bytes that a size like 5GB, 1.5 GiB or 5e9 is."""
    match = _SIZE.match(text.strip())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"--max-shard {text!r} is no size; give e.g. 5GB, 500MB or 2GiB")
    return float(match[1]) * (1024.0 if match[3] else 1000.0) ** " KMGT".index(match[2].upper() or " ")
