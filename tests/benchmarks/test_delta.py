"""The benchmark of the delta rule: every entry runs, and the table says where one stands for a longer one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Scripts find each other in their own folder, as they do when started.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import delta


def test_every_entry_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    delta.main(["--quick"])
    out = capsys.readouterr().out
    for name in delta.ENTRIES:
        assert name in out
    assert out.count("64 (shorter: slow)") == 2  # the two recurrences
    (ours,) = (line for line in out.splitlines() if delta.OURS in line)
    assert "MiB" in ours
