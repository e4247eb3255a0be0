"""What a resume needs beside the weights, in a checkpoint's `state/`: counters as JSON, tensors as safetensors."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from moonlet.hub.write import write_tensors
from moonlet.optim.optimizer import Optimizer
from moonlet.text.atomic import atomic_write

FOLDER = "state"
_RNG = "rng.cpu"


@dataclass
class Progress:
    """Counters of a run.

    step: optimizer steps taken, skipped ones included.
    total: steps of the whole run; None until a time budget has fixed it.
    decay_start: first step of WSD's fall; None until it is known.
    elapsed: seconds of training so far, over all resumes.
    skipped: steps in a row whose loss or gradient was not finite.
    collapsed: for each router, steps in a row that its experts have been collapsed; see `moonlet.train.alarm`.
    """

    step: int = 0
    total: int | None = None
    decay_start: int | None = None
    elapsed: float = 0.0
    skipped: int = 0
    collapsed: list[int] = field(default_factory=list)


def write_state(folder: Path, progress: Progress, loader: dict[str, int], optimizer: Optimizer) -> None:
    """Write `state/` into a checkpoint folder."""
    inner = folder / FOLDER
    inner.mkdir()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in optimizer.state().items()}
    tensors[_RNG] = torch.get_rng_state()
    write_tensors(tensors, inner / "optimizer.safetensors")
    atomic_write(inner / "progress.json", json.dumps({"progress": asdict(progress), "loader": loader}, indent=1) + "\n")


def read_state(folder: Path, optimizer: Optimizer) -> tuple[Progress, dict[str, int]]:
    """Restore the optimizer and the random state; return the counters and the loader's state.

    Raises:
        FileNotFoundError: the checkpoint has no `state/`, as after somebody deleted it to save space.
    """
    inner = folder / FOLDER
    if not inner.is_dir():
        raise FileNotFoundError(f"{folder} has no {FOLDER}/ to resume from; the model in it can still be used")
    tensors = load_file(inner / "optimizer.safetensors")
    torch.set_rng_state(tensors.pop(_RNG))
    optimizer.load_state(tensors)
    saved = json.loads((inner / "progress.json").read_text(encoding="utf-8"))
    return Progress(**saved["progress"]), saved["loader"]
