"""Checkpoints are whole or not there."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from moonlet.train import checkpoint
from moonlet.train.checkpoint import checkpoints, clean_leftovers, newest_good, problem_of, prune, save_checkpoint


def fill(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    (folder / "state").mkdir()
    (folder / "state" / "progress.json").write_text('{"step": 3}')


def test_a_saved_checkpoint_is_whole(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 3, fill)
    assert problem_of(path) is None
    assert newest_good(tmp_path) == path
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


def test_one_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    good = save_checkpoint(tmp_path, 1, fill)
    path = save_checkpoint(tmp_path, 2, fill)
    warnings: list[str] = []
    pick = random.Random(0)
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != "manifest.json"):
        original = file.read_bytes()
        for _ in range(25):
            damaged = bytearray(original)
            damaged[pick.randrange(len(damaged))] ^= 1 << pick.randrange(8)
            file.write_bytes(bytes(damaged))
            assert problem_of(path) is not None
            assert newest_good(tmp_path, warnings.append) == good
        file.write_bytes(original)
    assert problem_of(path) is None
    assert all("step-00000002" in w and "sha256" in w for w in warnings)


@pytest.mark.parametrize("damage", ["truncate", "delete", "no manifest", "torn manifest"])
def test_every_kind_of_damage_is_named(tmp_path: Path, damage: str) -> None:
    path = save_checkpoint(tmp_path, 1, fill)
    weights, manifest = path / "model.safetensors", path / "manifest.json"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "delete":
        weights.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes()[:40])
    problem = problem_of(path)
    assert problem is not None
    assert ("manifest" if "manifest" in damage else "model.safetensors") in problem


class Kill(BaseException):
    """Stands for SIGKILL: nothing may run after it but what a new process does."""


@pytest.mark.parametrize("phase", ["write", "manifest", "rename", "prune"])
def test_a_kill_in_any_phase_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    old = save_checkpoint(tmp_path, 1, fill)

    def die(*_: object, **__: object) -> None:
        raise Kill

    with monkeypatch.context() as patch:
        # A dead process does not tidy up either.
        patch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None if phase != "prune" else die())
        if phase == "manifest":
            patch.setattr(checkpoint, "atomic_write", die)
        if phase == "rename":
            patch.setattr(checkpoint.os, "replace", die)
        if phase == "prune":
            patch.undo()
            save_checkpoint(tmp_path, 2, fill)
            patch.setattr(checkpoint.shutil, "rmtree", die)
            with pytest.raises(Kill):
                prune(tmp_path, 1)
        else:
            with pytest.raises(Kill):
                save_checkpoint(tmp_path, 2, die if phase == "write" else fill)
    good = newest_good(tmp_path)
    assert good is not None
    assert (good == old) is (phase != "prune")
    clean_leftovers(tmp_path)
    assert all(problem_of(path) is None for path in checkpoints(tmp_path))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        fill(folder)
        raise OSError(28, "No space left on device")

    old = save_checkpoint(tmp_path, 1, fill)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, full)
    assert list(tmp_path.iterdir()) == [old]


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, step, fill)
    prune(tmp_path, 2)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]


def test_prune_never_removes_the_only_good_one(tmp_path: Path) -> None:
    good = save_checkpoint(tmp_path, 1, fill)
    for step in (2, 3):
        (save_checkpoint(tmp_path, step, fill) / "model.safetensors").unlink()
    prune(tmp_path, 1)
    assert newest_good(tmp_path) == good


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be opened for syncing there")
def test_everything_is_synced_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(handle: int) -> None:
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        real_sync(handle)

    def replace(source: Path, target: Path) -> None:
        events.append(f"-> {Path(target).name}")
        real_replace(source, target)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc to see which file is synced")
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    save_checkpoint(tmp_path, 5, fill)
    name = events.index("-> step-00000005")
    assert {"model.safetensors", "progress.json"} <= set(events[:name])
    assert events.index("-> manifest.json") < name
    assert events[name + 1] == tmp_path.name
