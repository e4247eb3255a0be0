"""All that is worth knowing of this machine before a run, and what should be done about it."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

import torch

from moonlet.train.fastpaths import FastPath, fast_paths
from moonlet.train.machine import Machine, read_machine
from moonlet.train.packages import Package, base_versions, optional_packages
from moonlet.train.precision import pick_device
from moonlet.train.probe import Allocator, Rates, measure_rates, try_allocator


@dataclass(frozen=True)
class Diagnosis:
    """`threads` is what torch computes with; `load` the mean of processes that wanted a core in the last minute."""

    python: str
    versions: dict[str, str]
    packages: list[Package]
    machine: Machine
    device: str
    threads: int
    load: float | None
    rates: Rates
    allocator: Allocator
    paths: list[FastPath]
    notes: list[str]

    def as_values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        values["allocator"]["effective"] = self.allocator.effective
        return values


def diagnose(device: str = "auto", seconds: float = 2.0) -> Diagnosis:
    """Look at the machine and measure it for about `seconds`.

    Raises:
        ValueError: a device this machine does not have.
    """
    chosen = pick_device(device)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    machine, allocator = read_machine(), try_allocator()
    rates = measure_rates(chosen, seconds)
    return Diagnosis(
        python=platform.python_version(),
        versions=base_versions(),
        packages=optional_packages(),
        machine=machine,
        device=str(chosen),
        threads=torch.get_num_threads(),
        load=load,
        rates=rates,
        allocator=allocator,
        paths=fast_paths(chosen),
        notes=advice(machine, torch.get_num_threads(), load, allocator),
    )


def advice(machine: Machine, threads: int, load: float | None, allocator: Allocator) -> list[str]:
    """What stands in the way of speed on this machine, and what to do."""
    notes = []
    cores = min(machine.usable_cores, machine.quota or machine.usable_cores)
    if machine.quota is not None and threads > machine.quota + 0.5:
        wanted = max(1, round(machine.quota))
        notes.append(
            f"the control group allows {machine.quota:g} cores and torch uses {threads} threads: train.threads={wanted}"
        )
    elif threads < (machine.physical_cores or cores) and threads < int(cores):
        notes.append(
            f"torch uses {threads} of {int(cores)} cores: unset OMP_NUM_THREADS, or train.threads={int(cores)}"
        )
    if load is not None and load > 0.5 + 0.25 * cores:
        notes.append(
            f"other processes are at work (load {load:.1f} on {cores:g} cores): rates are lower than they could be"
        )
    if machine.available is not None and machine.available < 2 * 2**30:
        notes.append(f"only {machine.available / 2**30:.1f} GiB of memory are free")
    if allocator.effective is False:
        notes.append("freed memory goes back to the system at once, which slows small models down; on Linux use glibc")
    return notes
