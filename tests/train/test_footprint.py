"""Peak memory and page faults are the system's own, and a run writes them down."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from moonlet.cli import job
from moonlet.ops.allocator import keep_freed_memory
from moonlet.train.footprint import footprint, page_faults, resident_peak
from tests.train.tiny import recipe

CPU = torch.device("cpu")
counts = pytest.mark.skipif(page_faults() is None or resident_peak() is None, reason="not counted here")


@counts
def test_the_peak_stays_when_memory_goes() -> None:
    before = resident_peak()
    block = np.ones(2**24)  # 128 MiB
    peak = resident_peak()
    del block
    assert before is not None
    assert peak is not None
    assert peak >= 2**27
    # The system counts in lumps.
    assert (resident_peak() or 0) > 0.95 * peak > 0.9 * before


@counts
def test_fresh_pages_are_counted() -> None:
    before = page_faults()
    with mmap.mmap(-1, 2**24) as block:
        block.write(b"x" * 2**24)
    after = page_faults()
    assert before is not None
    assert after is not None
    # Pages of 4 KiB, or a few huge ones.
    assert after > before


def test_the_median_of_a_step_is_told_and_what_is_unknown_is_not() -> None:
    found = footprint(CPU, [9000, 3, 5, 4, 8000])
    assert (found.faults, found.device) == (5, None)
    assert "device" not in found.figures()


@counts
def test_a_run_writes_its_footprint_and_what_it_waited_for_data(tmp_path: Path) -> None:
    outcome = job.pretrain(recipe(tmp_path), tmp_path / "run")
    lines = [json.loads(line) for line in outcome.run.metrics_file.read_text().splitlines()]
    (memory,) = (line for line in lines if line["kind"] == "memory")
    assert memory["process"] > 100 * 2**20
    assert memory["faults"] < 1000
    assert outcome.memory is not None
    assert outcome.memory.process is not None
    assert outcome.memory.process > 0.95 * memory["process"]
    steps = [line for line in lines if line["kind"] == "train"]
    assert len(steps) == 12
    assert all(0 <= line["data_wait"] < 5 for line in steps)


def test_every_run_keeps_freed_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(job, "keep_freed_memory", lambda: asked.append(keep_freed_memory()))
    run = job.pretrain(recipe(tmp_path), tmp_path / "run").run
    first = len(asked)
    job.go_on(run, Console(quiet=True))
    assert 0 < first < len(asked)
