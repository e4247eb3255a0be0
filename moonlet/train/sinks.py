"""Other places the metrics go, beside metrics.jsonl: TensorBoard, and Weights & Biases.

A sink is told every record that is written to metrics.jsonl and keeps its numbers, each under "kind/name"; a list
gives one number an entry, "experts/entropy/layer1". What a sink needs is checked before a run begins. Once the run is
on its way no sink can stop it: one that fails is reported once and told nothing more.

    RUN/tensorboard   event files; a resumed run goes on in the same curves
    RUN/wandb         Weights & Biases' own files, offline or sent; a resumed run keeps its id
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from moonlet.config.sections import LogSettings
from moonlet.text.atomic import atomic_write
from moonlet.train.run import Run


class Sink(Protocol):
    """Where numbers go."""

    name: str

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Keep the numbers of one record."""
        ...

    def close(self) -> None:
        """Write out what is still held."""
        ...


class Sinks:
    """Several sinks as one that never fails.

    Args:
        warn: told, once a sink, that it failed and why.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self._sinks: list[Sink] = []

    def add(self, name: str, make: Callable[[], Sink]) -> None:
        """Open a sink."""
        try:
            self._sinks.append(make())
        except Exception as error:  # whatever a foreign package may raise
            self._failed(name, error)

    def write(self, record: Mapping[str, Any]) -> None:
        """Pass on the numbers of a record of metrics.jsonl."""
        found = numbers(record)
        if found:
            self._each(lambda sink: sink.write(int(record["step"]), found))

    def close(self) -> None:
        """Close all; nothing is passed on any more."""
        self._each(lambda sink: sink.close())
        self._sinks = []

    def __enter__(self) -> Sinks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _each(self, act: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                act(sink)
            except Exception as error:
                self._sinks.remove(sink)
                self._failed(sink.name, error)

    def _failed(self, name: str, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        self.warn(f"{name} failed and gets no more metrics ({reason}); training and metrics.jsonl go on")


class TensorBoard:
    """Event files for `tensorboard --logdir RUN/tensorboard`.

    Args:
        step: the step a run goes on from; what an earlier start wrote after it is hidden. 0: a new run.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(  # type: ignore[no-untyped-call]
            str(folder), purge_step=step + 1 if step else None, flush_secs=15
        )

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add one scalar a number."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Write out the events."""
        self._writer.close()  # type: ignore[no-untyped-call]


class WeightsAndBiases:
    """A Weights & Biases run in the folder of ours.

    Args:
        config: the recipe as plain values, shown beside the curves.
        online: send it; otherwise `wandb sync` can, later.
    """

    name = "Weights & Biases"

    def __init__(self, run: Run, project: str, config: Mapping[str, Any], online: bool) -> None:
        import wandb

        self._run = wandb.init(
            project=project,
            name=run.path.resolve().name,
            id=_wandb_id(run),
            dir=str(run.path),
            mode="online" if online else "offline",
            # Offline nobody can be asked what is there; the same id joins the parts when they are synced.
            resume="allow" if online else None,
            config=dict(config),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add the numbers to those of the step."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Write out the rest."""
        self._run.finish()


def check_sinks(log: LogSettings) -> None:
    """Refuse settings that cannot work, before anything is trained.

    Raises:
        ValueError: a package is missing, or nobody is logged in for `wandb = "online"`.
    """
    if log.tensorboard and not _installed("tensorboard"):
        raise ValueError('log.tensorboard needs the package tensorboard: pip install "moonlet[tensorboard]"')
    if log.wandb == "off":
        return
    if not _installed("wandb"):
        raise ValueError('log.wandb needs the package wandb: pip install "moonlet[wandb]"')
    if log.wandb == "online" and not _logged_in():
        raise ValueError(
            "log.wandb is online and nobody is logged in to Weights & Biases; run `wandb login`, or set "
            "log.wandb=offline"
        )


def open_sinks(log: LogSettings, run: Run, config: Mapping[str, Any], step: int, warn: Callable[[str], None]) -> Sinks:
    """The sinks that a recipe's [log] section asks for; with none, everything passed on is dropped.

    Args:
        config: the recipe as plain values.
        step: the step the run goes on from, 0 for a new one.
        warn: told when a sink fails.

    Raises:
        ValueError: as `check_sinks`.
    """
    check_sinks(log)
    sinks = Sinks(warn)
    if log.tensorboard:
        sinks.add(TensorBoard.name, lambda: TensorBoard(run.path / "tensorboard", step))
    if log.wandb != "off":
        online = log.wandb == "online"
        sinks.add(WeightsAndBiases.name, lambda: WeightsAndBiases(run, log.project, config, online))
    return sinks


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a record by name: "train/loss", "experts/load/layer2/0". Step, text and flags are left out.

    Where a record says which layers its lists are about, entries bear the layer's number.
    """
    layers = record.get("layers")
    layers = layers if isinstance(layers, list) else []
    found: dict[str, float] = {}
    for key, value in record.items():
        if key in ("kind", "step", "layers"):
            continue
        by_layer = isinstance(value, list) and len(value) == len(layers)
        items = zip((f"layer{n}" for n in layers), value, strict=True) if by_layer else [("", value)]
        for label, item in items:
            found.update(_flat(f"{record['kind']}/{key}" + f"/{label}" * bool(label), item))
    return found


def _flat(name: str, value: object) -> Iterator[tuple[str, float]]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{name}/{key}", item)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _flat(f"{name}/{place}", item)


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _logged_in() -> bool:
    """Whether wandb would find a key by itself: it must not ask for one in the middle of a start."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    try:
        return bool(wandb.login(prompt=False))
    except TypeError:  # older versions can only be asked for the key itself
        return bool(wandb.api.api_key)


def _wandb_id(run: Run) -> str:
    """The id of this run folder, drawn once."""
    file = run.path / "wandb" / "moonlet-run-id"
    if not file.is_file():
        atomic_write(file, secrets.token_hex(4) + "\n")
    return file.read_text(encoding="utf-8").strip()
