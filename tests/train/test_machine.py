"""What a machine is, read from the files that Linux tells it in."""

from __future__ import annotations

from pathlib import Path

import pytest

from moonlet.train.machine import core_quota, memory_limit, physical_cores, read_machine

CPUINFO = "\n\n".join(
    f"processor\t: {i}\nmodel name\t: Some CPU @ 2 GHz\nphysical id\t: {i // 4}\ncore id\t\t: {i % 2}\n"
    "flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile amx_bf16"
    for i in range(8)
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty root with a process that is in the group /a/b."""
    for folder in ("proc/self", "sys/fs/cgroup/a/b"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    (tmp_path / "proc/cpuinfo").write_text(CPUINFO)
    (tmp_path / "proc/meminfo").write_text("MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n")
    return tmp_path


def test_a_machine_without_limits(root: Path) -> None:
    machine = read_machine(root)
    assert (machine.memory, machine.available, machine.limited) == (16 * 2**30, 8 * 2**30, False)
    assert machine.quota is None
    assert machine.cpu == "Some CPU @ 2 GHz"
    assert machine.instruction_sets == ("AVX2", "AVX-512", "AVX-512 BF16", "AMX", "AMX BF16")
    assert machine.physical_cores == 4  # two sockets of two, each core twice


def test_physical_cores_are_counted_once() -> None:
    assert physical_cores(CPUINFO) == 4


def test_the_least_quota_of_all_groups_counts(root: Path) -> None:
    groups = root / "sys/fs/cgroup"
    (groups / "a" / "cpu.max").write_text("150000 100000\n")
    (groups / "a/b" / "cpu.max").write_text("400000 100000\n")
    (groups / "cpu.max").write_text("max 100000\n")
    assert core_quota(root) == 1.5


def test_memory_is_what_the_group_allows_less_what_it_uses(root: Path) -> None:
    group = root / "sys/fs/cgroup/a/b"
    (group / "memory.max").write_text(f"{4 * 2**30}\n")
    (group / "memory.current").write_text(f"{2**30}\n")
    machine = read_machine(root)
    assert (machine.memory, machine.available, machine.limited) == (4 * 2**30, 3 * 2**30, True)


def test_control_groups_of_the_first_version(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("4:cpu,cpuacct:/x\n9:memory:/x\n")
    for name, files in {
        "cpu": {"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"},
        "memory": {"memory.limit_in_bytes": "1000", "memory.usage_in_bytes": "10"},
    }.items():
        folder = root / "sys/fs/cgroup" / name / "x"
        folder.mkdir(parents=True)
        for file, text in files.items():
            (folder / file).write_text(text + "\n")
    assert core_quota(root) == 2.0
    assert memory_limit(root) == (1000, 10)


def test_without_any_of_these_files_the_rest_is_told(tmp_path: Path) -> None:
    machine = read_machine(tmp_path)
    assert machine.logical_cores >= machine.usable_cores >= 1
    assert machine.quota is None
    assert machine.torch_capability


def test_this_machine() -> None:
    machine = read_machine()
    assert machine.memory is None or machine.memory > 2**28
    assert machine.cpu
