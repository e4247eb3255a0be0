"""What this machine is: cores, memory, instruction sets, accelerators; as far as the system tells.

The number of cores in the machine is not what a process may use: affinity and, in a container, the control group's
quota limit it, and the same holds for memory. Linux tells all of it in files; elsewhere less is known.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

# What makes a difference to matrix products, as Linux spells it on x86 and on ARM.
_SETS = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX-512 BF16": "avx512_bf16",
    "AVX-512 VNNI": "avx512_vnni",
    "AMX": "amx_tile",
    "AMX BF16": "amx_bf16",
    "AMX INT8": "amx_int8",
    "NEON": "asimd",
    "SVE": "sve",
    "ARM BF16": "bf16",
    "ARM I8MM": "i8mm",
}


@dataclass(frozen=True)
class Accelerator:
    """One GPU."""

    name: str
    memory: int  # bytes; 0 where the system does not tell
    bf16: bool


@dataclass(frozen=True)
class Machine:
    """Cores, memory in bytes; None is unknown."""

    system: str
    cpu: str
    physical_cores: int | None
    logical_cores: int
    usable_cores: int  # by affinity
    quota: float | None  # cores a control group allows; None: no limit
    memory: int | None  # installed, or the control group's limit where that is less
    available: int | None  # of it, not in use now
    limited: bool  # whether a control group limits the memory
    instruction_sets: tuple[str, ...]
    torch_capability: str  # what torch's own kernels were chosen for
    accelerators: tuple[Accelerator, ...]


def read_machine(root: Path = Path("/")) -> Machine:
    """Look at this machine; `root` is where /proc and /sys lie."""
    information = _read(root / "proc/cpuinfo")
    installed, free = _memory(root)
    limit, used = memory_limit(root)
    limited = limit is not None and (installed is None or limit < installed)
    if limited and limit is not None:
        free = min(x for x in (free, max(limit - used, 0)) if x is not None)
        installed = limit
    flags = set(re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", information, re.MULTILINE)[:1])
    words = set(" ".join(flags).split())
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=_cpu_name(information),
        physical_cores=physical_cores(information),
        logical_cores=os.cpu_count() or 1,
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        quota=core_quota(root),
        memory=installed,
        available=free,
        limited=limited,
        instruction_sets=tuple(name for name, flag in _SETS.items() if flag in words),
        torch_capability=torch.backends.cpu.get_cpu_capability(),
        accelerators=_accelerators(),
    )


def physical_cores(information: str) -> int | None:
    """Cores without their hyper-threads, from the text of /proc/cpuinfo, or from the system where that is empty."""
    pairs = set()
    for block in information.split("\n\n"):
        found = dict(re.findall(r"^(physical id|core id)\s*:\s*(\d+)", block, re.MULTILINE))
        if "core id" in found:
            pairs.add((found.get("physical id"), found["core id"]))
    return len(pairs) or _number(_ask("sysctl", "-n", "hw.physicalcpu"))


def core_quota(root: Path = Path("/")) -> float | None:
    """Cores the control groups around this process allow, the least of all; None where none limits."""
    quotas = []
    for folder in _groups(root, "cpu"):
        words = _read(folder / "cpu.max").split()  # version 2: quota and period
        if not words:
            words = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limit(root: Path = Path("/")) -> tuple[int | None, int]:
    """The least memory limit of the control groups around this process, and what that group uses; bytes."""
    limits = []
    for folder in _groups(root, "memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            text = _read(folder / limit).strip()
            # Version 1 spells "no limit" as a number near 2^63.
            if text.isdigit() and int(text) < 2**60:
                limits.append((int(text), _number(_read(folder / used)) or 0))
    return min(limits, default=(None, 0))


def _groups(root: Path, controller: str) -> list[Path]:
    """Folders of the control groups this process is in, inner ones first."""
    folders = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if controllers else "")
        inner = base / path.lstrip("/")
        # In a container the path may be the host's; the group's own files then lie at the top.
        folders += [inner, *(p for p in inner.parents if base in p.parents or p == base), base]
    return list(dict.fromkeys(folders))


def _memory(root: Path) -> tuple[int | None, int | None]:
    """Installed and available bytes."""
    found = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE))
    if found:
        return int(found["MemTotal"]) * 1024, int(found["MemAvailable"]) * 1024 if "MemAvailable" in found else None
    if sys.platform == "win32":
        return _windows_memory()
    return _number(_ask("sysctl", "-n", "hw.memsize")), None


def _windows_memory() -> tuple[int | None, int | None]:
    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *(
                (name, ctypes.c_ulonglong)
                for name in ("total", "free", "pages", "free_pages", "room", "free_room", "x")
            ),
        ]

    status = Status(length=ctypes.sizeof(Status))
    library = getattr(ctypes, "windll", None)
    if library is None or not library.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None, None
    return int(status.total), int(status.free)


def _accelerators() -> tuple[Accelerator, ...]:
    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported()
        every = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
        return tuple(Accelerator(p.name, p.total_memory, bf16) for p in every)
    if torch.backends.mps.is_available():
        return (Accelerator("Apple GPU (Metal)", 0, True),)
    return ()


def _cpu_name(information: str) -> str:
    named = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", information, re.MULTILINE)
    if named:
        return named.group(1).strip()
    return _ask("sysctl", "-n", "machdep.cpu.brand_string").strip() or platform.processor() or platform.machine()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _ask(*command: str) -> str:
    """What a program of the system prints; empty where there is none, as sysctl outside of macOS."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None
