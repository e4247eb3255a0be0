"""metrics.jsonl survives kills and resumes."""

from __future__ import annotations

from pathlib import Path

from moonlet.train.metrics import Metrics, keep_until, read_metrics


def test_a_torn_last_line_is_passed_over_and_then_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in (1, 2, 3):
        metrics.write("train", step, loss=1.0 / step)
    metrics.close()
    path.write_bytes(path.read_bytes()[:-9])
    assert [r["step"] for r in read_metrics(path)] == [1, 2]
    keep_until(path, 1)
    assert path.read_text().count("\n") == 1
    assert [r["step"] for r in read_metrics(path, "train")] == [1]
    assert not list(read_metrics(path, "eval"))
