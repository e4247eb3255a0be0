"""The loss picture: drawn atomically, and only when there is something to draw."""

from __future__ import annotations

from pathlib import Path

import pytest

from moonlet.plot.loss import draw_loss, smooth
from moonlet.train.metrics import Metrics


def test_a_picture_comes_with_the_second_step(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    picture = tmp_path / "loss.png"
    metrics.write("train", 1, loss=8.0, lr=1e-3)
    draw_loss(metrics.path, picture, "t")
    assert not picture.exists()
    metrics.write("train", 2, loss=7.0, lr=1e-3)
    metrics.write("eval", 2, bits_per_byte=1.5)
    draw_loss(metrics.path, picture, "t", floor=0.4)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]


def test_smoothing_keeps_length_and_mean_level() -> None:
    flat = smooth([2.0] * 500)
    assert flat == pytest.approx([2.0] * 500)
    assert len(smooth([1.0, 2.0, 3.0])) == 3
