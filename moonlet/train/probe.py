"""What this machine does in a second: bytes moved, and operations of matrix products, measured.

A product of n x n matrices takes 2 n^3 operations; a copy moves each byte twice, out of memory and into it. Both are
taken at sizes that fill the machine, the best of several tries: what remains is the machine's and not its neighbours'.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from moonlet.ops.allocator import keep_freed_memory

_SIDES = (256, 512, 1024, 2048, 4096, 8192)
_COPIED = 64 * 2**20  # bytes, beyond most caches
_FRESH = 32 * 2**20


@dataclass(frozen=True)
class Rates:
    """Measured on one device; None was not measured."""

    bandwidth: float  # bytes a second, read and written
    fp32: float  # operations a second
    bf16: float | None


def measure_rates(device: torch.device, seconds: float = 2.0) -> Rates:
    """Measure within about `seconds`."""
    share = seconds / 4
    return Rates(
        bandwidth=_bandwidth(device, share),
        fp32=_reached(device, torch.float32, 1.5 * share),
        bf16=_reached(device, torch.bfloat16, 1.5 * share),
    )


def _reached(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """The rate of all threads, or that of one where it is higher: threads wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return _product_rate(device, dtype, seconds)
    torch.set_num_threads(1)
    try:
        one = _product_rate(device, dtype, seconds / 3)
    finally:
        torch.set_num_threads(threads)
    return max(one, _product_rate(device, dtype, seconds * 2 / 3))


def _bandwidth(device: torch.device, seconds: float) -> float:
    source = torch.ones(_COPIED // 4, device=device)
    target = torch.zeros_like(source)
    return 2 * _COPIED / _best(lambda: target.copy_(source), device, seconds)


def _product_rate(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Operations a second of square products, the best of growing sizes within `seconds`.

    Small ones first: where other processes want the same cores, only what ends within a turn shows the cores' rate.
    """
    begin, rate = time.perf_counter(), 0.0
    for side in _SIDES:
        left = seconds - (time.perf_counter() - begin)
        expected = 2 * side**3 / rate if rate else 0.0
        if 3 * expected > left:
            break
        a = torch.ones(side, side, device=device, dtype=dtype)
        b = torch.ones(side, side, device=device, dtype=dtype)
        took = _best(lambda a=a, b=b: a @ b, device, left / 3)  # type: ignore[misc]
        rate = max(rate, 2 * side**3 / took)
    return rate


def _best(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest try; at least two tries after one to warm up."""
    work()
    synchronise(device)
    best, begin, tries = float("inf"), time.perf_counter(), 0
    while tries < 2 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        work()
        synchronise(device)
        best = min(best, time.perf_counter() - start)
        tries += 1
    return best


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True)
class Allocator:
    """Whether freed memory stays with the process: asked for, and what it does to page faults.

    faults_before, faults_after: pages the kernel handed out for a block that had been freed just before, without and
    with the request; None where the system does not count them.
    """

    listened: bool
    faults_before: int | None
    faults_after: int | None

    @property
    def effective(self) -> bool | None:
        """Whether freed blocks come back without page faults; None: unknown."""
        return None if self.faults_after is None else self.faults_after * 4096 < _FRESH / 10


def try_allocator() -> Allocator:
    """Ask the allocator to keep what is freed, as training does, and look whether it works."""
    before = _refill_faults()
    listened = keep_freed_memory()
    # The heap has to grow a few times before it holds a free block of this size.
    after = [faults for faults in (_refill_faults() for _ in range(8)) if faults is not None]
    return Allocator(listened, before, min(after, default=None))


def _refill_faults() -> int | None:
    """Page faults of writing a block of the size of one that was freed just before."""
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # Windows
        return None
    torch.ones(_FRESH // 4)
    start: int = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(_FRESH // 4)
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
