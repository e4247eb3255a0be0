"""What a process took of the machine's memory: its peak, a GPU's, and how often the kernel had to hand out pages.

A page fault is a page that was not there when it was first written to. After the first steps there should be hardly
any: what a step frees stays with the process (`moonlet.ops.allocator`), and the next one finds it again.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch


@dataclass(frozen=True)
class Footprint:
    """Bytes and faults; None where the system does not tell, or there is no such device.

    process: the most memory that the process has had.
    device: the most that tensors have had on the GPU.
    faults: page faults of a step, the median.
    """

    process: int | None
    device: int | None
    faults: int | None

    def figures(self) -> dict[str, int]:
        """What is known, as plain numbers for metrics.jsonl."""
        return {name: value for name, value in vars(self).items() if value is not None}


def footprint(device: torch.device, faults: Sequence[int] = ()) -> Footprint:
    """Of this process until now.

    Args:
        faults: page faults of each step.
    """
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Footprint(resident_peak(), on_device, int(median(faults)) if faults else None)


def resident_peak() -> int | None:
    """The most memory this process has ever had, in bytes; None where the system does not tell."""
    try:
        # Linux' own count: the other one begins with what the process that started this one had.
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # Windows
        return None
    most = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return most if sys.platform == "darwin" else most * 1024


def page_faults() -> int | None:
    """Pages that the kernel has handed to this process until now; None where the system does not count them."""
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # Windows
        return None
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
