"""What the speed benchmarks share: a training step as a function, rounds in turn, and the machine in one line."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import count as counting
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from moonlet.config import Recipe
from moonlet.data.loader import Batches
from moonlet.optim.balance import bias_speed
from moonlet.optim.optimizer import Optimizer
from moonlet.text.tokenizer import Tokenizer
from moonlet.train.step import train_step


def training_step(
    model: Any, optimizer: Optimizer, recipe: Recipe, loader: Batches, tokenizer: Tokenizer
) -> Callable[[], float]:
    """A step as the loop takes it, its batch read from the loader; called, it returns the loss."""
    t, o, position = recipe.train, recipe.optim, counting()
    compiler = compiler_of(recipe)
    more = {} if compiler is None else {"compiler": compiler}

    def step() -> float:
        inputs, targets = map(torch.from_numpy, loader.batch(next(position)))
        batch = inputs.to(model.device), targets.to(model.device)
        return train_step(
            model, optimizer, [batch], count=1, lr=1e-4, grad_clip=t.grad_clip,
            bias_update_speed=bias_speed(o, 0, None), zero_mean=o.balance == "zero-mean",
            aux_loss_alpha=o.aux_loss_alpha, bos_id=tokenizer.bos_id if t.separate_documents else None,
            qk_clip_tau=o.clip_tau, **more,
        ).loss  # fmt: skip

    return step


def compiler_of(recipe: Recipe) -> Any:
    """What compiles the layers of moonlet's model where a recipe says train.compile = "on"; else None."""
    if getattr(recipe.train, "compile", "off") != "on":
        return None
    from moonlet.train.compile import Compiler

    return Compiler()


def speeds(
    steps: Mapping[str, Callable[[], object]], tokens: Mapping[str, int], rounds: int, each: int, warm: int = 2
) -> dict[str, list[float]]:
    """Tokens a second of every entry, a number a round; the entries take turns within a round.

    Args:
        tokens: that one call of each reads.
        each: calls a round.
        warm: calls before the first round, in which memory grows and kernels are built.
    """
    for step in steps.values():
        for _ in range(warm):
            step()
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        gc.collect()  # not in the midst of somebody's turn
        for name, step in steps.items():
            begin = time.perf_counter()
            for _ in range(each):
                step()
            found[name].append(each * tokens[name] / (time.perf_counter() - begin))
    return found


def ratios(found: Sequence[float], peer: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest and highest ratio, round by round: what else the machine does then strikes both."""
    values = sorted(a / b for a, b in zip(found, peer, strict=True))
    return statistics.median(values), values[0], values[-1]


def machine() -> str:
    """Processor, threads, GPU and versions."""
    versions = []
    for name in ("torch", "transformers"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        versions.insert(0, torch.cuda.get_device_name())
    return ", ".join(
        (f"{processor()} ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} of {os.cpu_count()} "
         f"cores", f"{platform.system()}, Python {platform.python_version()}", *versions)
    )  # fmt: skip


def processor() -> str:
    """The processor's name, where the system tells it."""
    if Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
