"""Sinks get every number of every record, go on after a resume, and never stop a run; what they lack is said before."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moonlet.cli import job
from moonlet.config.sections import LogSettings
from moonlet.train import sinks as module
from moonlet.train.loop import Trainer
from moonlet.train.metrics import Metrics, read_metrics
from moonlet.train.run import Run
from moonlet.train.sinks import Sinks, check_sinks, numbers, open_sinks
from moonlet.train.state import Progress
from tests.train import tiny


class Notes:
    """A sink that remembers, and fails from its `breaks`-th record on."""

    name = "notes"

    def __init__(self, breaks: int | None = None) -> None:
        self.breaks = breaks
        self.written: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        if self.breaks is not None and len(self.written) >= self.breaks:
            raise OSError("disk is\n full")
        self.written.append((step, dict(numbers)))

    def close(self) -> None:
        self.closed = True


def test_every_number_of_a_record_has_a_name() -> None:
    record: dict[str, Any] = {
        "kind": "experts",
        "step": 3,
        "layers": [1, 2],
        "entropy": [0.5, 0.6],
        "load": [[0.25, 0.75], [1.0, 0.0]],
        "more": {"deep": 7, "text": "no", "flag": True, "list": [8, None]},
        "text": "no",
    }
    assert numbers(record) == {
        "experts/entropy/layer1": 0.5,
        "experts/entropy/layer2": 0.6,
        "experts/load/layer1/0": 0.25,
        "experts/load/layer1/1": 0.75,
        "experts/load/layer2/0": 1.0,
        "experts/load/layer2/1": 0.0,
        "experts/more/deep": 7.0,
        "experts/more/list/0": 8.0,
    }
    assert numbers({"kind": "checkpoint", "step": 3, "path": "step-00000003"}) == {}


def test_metrics_tell_the_sinks_what_they_wrote(tmp_path: Path) -> None:
    notes, sinks = Notes(), Sinks(pytest.fail)
    sinks.add("notes", lambda: notes)
    metrics = Metrics(tmp_path / "m.jsonl", sinks.write)
    metrics.write("train", 1, loss=2.0, problem="none")
    metrics.write("sample", 1, text="Once")
    metrics.write("eval", 2, loss=1.5)
    metrics.close()
    sinks.close()
    assert notes.written == [(1, {"train/loss": 2.0}), (2, {"eval/loss": 1.5})]
    assert notes.closed
    assert len(list(read_metrics(tmp_path / "m.jsonl"))) == 3


def train(run: Run, sinks: Sinks, monkeypatch: pytest.MonkeyPatch) -> job.Outcome:
    """A whole tiny run that reports to `sinks`."""
    plain = Trainer.train

    def reporting(self: Trainer) -> Progress:
        self.hooks = replace(self.hooks, record=sinks.write)
        return plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", reporting)
        return job.go_on(run, tiny.quiet())


def test_a_failing_sink_is_reported_once_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    broken, whole = Notes(breaks=2), Notes()
    sinks = Sinks(said.append)
    sinks.add("broken", lambda: broken)
    sinks.add("whole", lambda: whole)

    def never() -> Notes:
        raise RuntimeError("no server")

    sinks.add("never", never)
    run = Run.create(tmp_path / "run", tiny.recipe(tmp_path))
    outcome = train(run, sinks, monkeypatch)
    assert outcome.progress.step == 12
    assert [text.split(" failed")[0] for text in said] == ["never", "notes"]
    assert "disk is full" in said[1]
    assert len(broken.written) == 2
    assert whole.written == [(r["step"], numbers(r)) for r in read_metrics(run.metrics_file) if numbers(r)]
    assert {name for _, found in whole.written for name in found} >= {"train/loss", "eval/bits_per_byte"}


def test_no_settings_no_sinks(tmp_path: Path) -> None:
    sinks = open_sinks(LogSettings(), Run(tmp_path), {}, 0, pytest.fail)
    sinks.write({"kind": "train", "step": 1, "loss": 1.0})
    sinks.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "package"),
    [(LogSettings(tensorboard=True), "tensorboard"), (LogSettings(wandb="offline"), "wandb")],
)
def test_a_missing_package_is_one_line_before_anything_is_made(
    settings: LogSettings, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf'pip install "moonlet\[{package}\]"'):
        open_sinks(settings, Run(tmp_path), {}, 0, pytest.fail)
    assert not list(tmp_path.iterdir())


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_the_curves_and_a_resumed_run_continues_them(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    # Started, killed after step 5, resumed from the checkpoint of step 3.
    for start, end, loss in ((0, 5, 1.0), (3, 7, 2.0)):
        with open_sinks(LogSettings(tensorboard=True), Run(tmp_path), {}, start, pytest.fail) as sinks:
            for step in range(start + 1, end + 1):
                sinks.write({"kind": "train", "step": step, "loss": loss, "lr": 0.5})
    found = scalars(tmp_path / "tensorboard")
    assert set(found) == {"train/loss", "train/lr"}
    assert found["train/loss"] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0), (7, 2.0)]


WANDB = """
import socket, sys
from pathlib import Path
from moonlet.config.sections import LogSettings
from moonlet.train.run import Run
from moonlet.train.sinks import open_sinks

connect = socket.socket.connect
def local_only(self, address):
    assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "localhost", "::1"), address
    return connect(self, address)
socket.socket.connect = local_only
for start in (0, 3):
    with open_sinks(LogSettings(wandb="offline"), Run(Path(sys.argv[1])), {"name": "x"}, start, sys.exit) as sinks:
        for step in range(start + 1, start + 4):
            sinks.write({"kind": "train", "step": step, "loss": 0.125 * step})
"""


def history(file: Path) -> list[dict[str, str]]:
    """The rows that Weights & Biases keeps in a run file: a log of blocks as LevelDB writes it, of protobuf records."""
    from wandb.proto import wandb_internal_pb2

    data, at, record, rows = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block is too short for a header
            at += 32768 - at % 32768
            continue
        length, part = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # whole, or the last part
            parsed = wandb_internal_pb2.Record()
            parsed.ParseFromString(record)
            record = b""
            if parsed.HasField("history"):
                items = parsed.history.item
                rows.append({item.key or "/".join(item.nested_key): item.value_json for item in items})
    return rows


def test_wandb_offline_keeps_its_files_in_the_run_and_its_id_on_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    # A process of its own, started and resumed; without a home there is nobody logged in, and nobody is asked.
    done = subprocess.run(
        [sys.executable, "-c", WANDB, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(tmp_path / "home"), "WANDB_API_KEY": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "login" not in done.stdout + done.stderr
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime)
    assert len(files) == 2
    assert files[0].name == files[1].name
    losses = [(int(r["_step"]), float(r["train/loss"])) for file in files for r in history(file)]
    assert losses == [(step, 0.125 * step) for step in range(1, 7)]


def test_online_without_a_login_is_refused_and_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setattr(module, "_logged_in", lambda: False)
    with pytest.raises(ValueError, match="wandb login"):
        check_sinks(LogSettings(wandb="online"))
