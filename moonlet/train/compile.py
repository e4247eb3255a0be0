"""torch.compile for the regions of a layer (ops/region.py), in training alone.

Regional: every region is compiled once for each shape of its module and serves all layers alike, weights and all being
its inputs. What stands between regions runs as ever; so do evaluation, sampling and generation, whose shapes would each
cost a compilation. Modules, parameters and checkpoints know nothing of it.

    train.compile = "off"    never
                    "on"     always; an error where this machine cannot
                    "auto"   where it is known to pay and the run is long enough to earn the first start's time back

A start after the first takes the compiled code from the user's cache: moonlet's, unless TORCHINDUCTOR_CACHE_DIR says
where. What was decided is written into the run and kept by a resume, for fused arithmetic rounds differently.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from moonlet.config.sections import TrainSettings
from moonlet.ops.native import cache_folder, compiler_name
from moonlet.ops.region import REGIONS, fused

# On a GPU every operator is a launch, and fusing saves launches as well as memory traffic. On a CPU it saves a
# twentieth of a step, and the kernels of ops/native more than that without compiling: docs/performance.md.
PAYS = {"cuda": True}
# A run shorter than this ends before the first start's compilation is earned back.
LONG_MINUTES, LONG_STEPS = 10.0, 2000
# A model has a few kinds of each region; beyond torch's own limit of eight it would give up.
_KINDS = 64


@dataclass(frozen=True)
class Decision:
    """Whether this run is compiled, and why, in a few words."""

    on: bool
    why: str
    tell: bool = False  # whether to whoever started the run: not where nothing was asked for and nothing is missing

    @property
    def word(self) -> str:
        """As the run's record has it."""
        return "on" if self.on else "off"


def decide(settings: TrainSettings, device: torch.device, recorded: str | None = None) -> Decision:
    """Whether to compile a run.

    Args:
        recorded: "on" or "off" of the start that is resumed; None: this is the first.

    Raises:
        ValueError: train.compile is "on" and this machine cannot.
    """
    wanted = worthwhile(settings, device)
    if settings.compile != "auto":
        wanted = Decision(settings.compile == "on", "asked for")
    elif recorded is not None:
        wanted = Decision(recorded == "on", "as at the start")
    if not wanted.on:
        return wanted
    problem = why_not(device)
    if not problem:
        return Decision(True, f"{wanted.why}; the first step takes longer", tell=True)
    if settings.compile == "on":
        raise ValueError(f'train.compile is "on" and this machine cannot compile: {problem}; try train.compile=off')
    return Decision(False, f"this machine cannot: {problem}", tell=True)


def worthwhile(settings: TrainSettings, device: torch.device) -> Decision:
    """Whether "auto" wants it, from the device and the run's length; nothing is tried."""
    if not PAYS.get(device.type, False):
        return Decision(False, f"too little to gain on this device ({device.type})")
    if settings.minutes < LONG_MINUTES and settings.steps < LONG_STEPS:
        return Decision(False, f"too short a run: {LONG_MINUTES:g} minutes or {LONG_STEPS:,} steps earn it back")
    return Decision(True, "a long run on a GPU")


def describe_auto(device: torch.device) -> tuple[str, str]:
    """What "auto" does on this device: "on" or "off", and when or why. Nothing is tried."""
    found = worthwhile(TrainSettings(minutes=LONG_MINUTES), device)
    return ("on", f"for runs from {LONG_MINUTES:g} minutes or {LONG_STEPS:,} steps") if found.on else ("off", found.why)


def why_not(device: torch.device) -> str:
    """One line on why nothing can be compiled here; empty where it can. Compiles a line of code to see."""
    if device.type == "cpu" and not compiler_name():
        return "no C++ compiler (install g++ or clang)"
    _prepare()
    x = torch.ones(32, 32, device=device, requires_grad=True)
    try:
        torch.compile(_trial, dynamic=False, fullgraph=True)(x).backward()
    except Exception as error:  # whatever a compiler, its headers or a driver can raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:200]
    return ""


def _trial(x: torch.Tensor) -> torch.Tensor:
    return (x.sigmoid() * x).sum()


class Compiler:
    """Compiles regions as a training step meets them.

    Args:
        backend: torch.compile's; tests take one that only traces.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        _prepare()
        options: dict[str, Any] = {"dynamic": False, "fullgraph": True, "backend": backend}
        self._compiled = {piece: torch.compile(piece.function, **options) for piece in REGIONS}

    @contextmanager
    def step(self) -> Iterator[None]:
        """Forwards inside the block run compiled regions, and their backwards do too.

        Raises:
            ValueError: something could not be compiled.
        """
        from torch._dynamo.exc import TorchDynamoException

        try:
            with fused(self._compiled):
                yield
        except TorchDynamoException as error:
            first = next(iter(str(error).strip().splitlines()), "no message")
            raise ValueError(f"torch.compile failed ({first}); go on with train.compile=off") from error


def _prepare() -> None:
    """Where compiled code is kept, said before inductor first asks; and how many kinds of a region there may be."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder("inductor")))
    import torch._dynamo as dynamo

    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _KINDS)
