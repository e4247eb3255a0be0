"""What a run's folder says about its training, as columns ready to draw.

Three ways to count progress: `step`; `tokens` read, a step's times its number; and `time` spent on training steps, in
seconds, added up from the tokens per second of the steps that were logged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from moonlet.config import Recipe
from moonlet.config.recall import RECALL
from moonlet.data.manifest import MANIFEST_FILE, Manifest, read_manifest
from moonlet.data.recall import RecallTask
from moonlet.train.metrics import read_metrics
from moonlet.train.run import Run

AXES = ("step", "tokens", "time")
COLUMNS = ("loss", "lr", "grad_norm", "tokens_per_s", "load_max")


@dataclass(frozen=True)
class History:
    """One run. Lists of records are in the order of their steps."""

    run: Run
    recipe: Recipe
    facts: dict[str, Any]
    train: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    experts: list[dict[str, Any]]
    routers: list[dict[str, Any]]
    attention: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    skipped: int = 0
    text: Manifest | None = field(default=None)

    @property
    def name(self) -> str:
        """Of the folder: recipes may share theirs."""
        return self.run.path.resolve().name

    @property
    def title(self) -> str:
        """Heading of pictures; synthetic text is always called so."""
        if self.recipe.data.kind in RECALL:
            return f"{self.recipe.name}: {RecallTask.of(self.recipe.data).name}"
        if self.text is None:
            return self.recipe.name
        return f"{self.recipe.name}: {self.text.name}" + ("" if self.text.synthetic else " (real text)")

    @property
    def floor(self) -> float | None:
        """The text's entropy in bits per byte, where it is known."""
        return self.text.floor if self.text else None

    @property
    def tokens_per_step(self) -> int:
        """Tokens a step reads."""
        return self.recipe.train.batch_size * self.recipe.train.seq_len

    @property
    def last_step(self) -> int:
        """The last step that was logged."""
        return int(self.train[-1]["step"])

    def columns(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one thing in the "train" records, where it is there and finite."""
        found = [(r["step"], r[name]) for r in self.train if math.isfinite(r.get(name, math.nan))]
        return [step for step, _ in found], [value for _, value in found]

    @property
    def recalls(self) -> bool:
        """Whether evaluations count right answers, and not bits per byte."""
        return bool(self.evals) and "accuracy" in self.evals[-1]

    def bits(self) -> tuple[list[int], list[float]]:
        """Steps and bits per byte of the evaluations; of a recall task, the share of answers that are right."""
        return [r["step"] for r in self.evals], [_held_out(r) for r in self.evals]

    def at(self, steps: Sequence[int], by: str) -> list[float]:
        """Where `steps` lie on the axis `by`."""
        if by == "tokens":
            return [float(step * self.tokens_per_step) for step in steps]
        if by == "time":
            return [float(x) for x in np.interp(steps, *self._clock)]
        return [float(step) for step in steps]

    @property
    def seconds(self) -> float:
        """Spent on training steps."""
        return float(self._clock[1][-1])

    @cached_property
    def _clock(self) -> tuple[Any, Any]:
        steps, rates = self.columns("tokens_per_s")
        edges = np.array([0, *steps], dtype=float)
        spent = np.diff(edges) * self.tokens_per_step / np.maximum(np.array(rates, dtype=float), 1e-9)
        return edges, np.concatenate(([0.0], np.cumsum(spent)))


def read_history(path: Path) -> History:
    """Read a run folder, finished or not.

    Raises:
        FileNotFoundError: not a run folder.
        ValueError: nothing was trained in it yet.
    """
    run = Run.open(path)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for record in read_metrics(run.metrics_file):
        kinds.setdefault(record.get("kind", ""), []).append(record)
    train = [r for r in kinds.get("train", []) if math.isfinite(r.get("loss", math.nan))]
    if len(train) < 2:
        raise ValueError(f"{path} has {len(train)} training steps in {run.metrics_file.name}; a curve needs at least 2")
    return History(
        run, run.recipe(), run.facts(), train,
        [r for r in kinds.get("eval", []) if math.isfinite(_held_out(r))],
        kinds.get("experts", []), kinds.get("routers", []), kinds.get("attention", []),
        kinds.get("sample", []), len(kinds.get("skip", [])),
        _manifest(run),
    )  # fmt: skip


def _held_out(record: dict[str, Any]) -> float:
    return float(record.get("bits_per_byte", record.get("accuracy", math.nan)))


def _manifest(run: Run) -> Manifest | None:
    """What is known of the run's text; None when its shards were deleted, which takes nothing but the floor."""
    folders = [p.parent for p in sorted(run.data.glob(f"*/{MANIFEST_FILE}"))]
    if isinstance(named := run.facts().get("data"), str):
        folders.append(Path(named))
    for folder in folders:
        try:
            return read_manifest(folder)
        except (OSError, ValueError):
            continue
    return None


def names_of(histories: Sequence[History]) -> list[str]:
    """A name for each run, distinct: the folder's, with as much of its path as that takes."""
    paths = [h.run.path.resolve() for h in histories]
    for depth in range(1, max(len(p.parts) for p in paths) + 1):
        names = ["/".join(p.parts[-depth:]) for p in paths]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"{histories[0].run.path} is given more than once; name each run once")


def thin(xs: Sequence[float], ys: Sequence[float], limit: int) -> tuple[list[float], list[float]]:
    """At most about `limit` points of a curve: of each stretch its lowest and its highest, so that no spike is lost."""
    if len(xs) <= limit:
        return list(xs), list(ys)
    keep = {0, len(xs) - 1}
    stretches = max(1, limit // 2)
    for i in range(stretches):
        part = range(i * len(xs) // stretches, (i + 1) * len(xs) // stretches)
        keep |= {min(part, key=lambda j: ys[j]), max(part, key=lambda j: ys[j])}
    order = sorted(keep)
    return [xs[j] for j in order], [ys[j] for j in order]
