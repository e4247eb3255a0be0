"""A run folder: everything one training run made, in one place.

recipe.toml      the resolved recipe; `moonlet train RUN/recipe.toml` repeats the run
run.json         versions, git hash, machine, compute dtype
metrics.jsonl    one line a step, evaluation and checkpoint
loss.png         redrawn while training
samples.md       the same prompts at several steps
plots/           what `moonlet plot` draws, and report.html beside it
profile/         where a step's time goes, of `moonlet train --profile`
tokenizer/       as Hugging Face loads it
data/            token shards
checkpoints/     step-NNNNNNNN: Hugging Face directories with a state/ to resume from
model/           the finished model, a Hugging Face directory
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from moonlet.config import Recipe, load_recipe, toml
from moonlet.text.atomic import atomic_write

_PACKAGES = ("moonlet", "torch", "numpy", "safetensors", "tokenizers")


class Run:
    """Paths and facts of one run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.toml"
        self.facts_file = path / "run.json"
        self.metrics_file = path / "metrics.jsonl"
        self.plot_file = path / "loss.png"
        self.samples_file = path / "samples.md"
        self.profile = path / "profile"
        self.tokenizer = path / "tokenizer"
        self.data = path / "data"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> Run:
        """Make the folder with its recipe; raises ValueError when `path` already holds something."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"{path} already exists; choose another --out, or go on with `moonlet resume {path}`")
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        run.write_recipe(recipe)
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """An existing run folder; raises FileNotFoundError when it is none."""
        if not (path / "recipe.toml").is_file():
            raise FileNotFoundError(f"{path} is not a run folder: it has no recipe.toml")
        return cls(path)

    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return load_recipe(self.recipe_file)

    def write_recipe(self, recipe: Recipe) -> None:
        """Replace the recipe (its model's vocabulary follows the tokenizer once that is known)."""
        atomic_write(self.recipe_file, toml.dumps(recipe.to_dict()))

    def write_facts(self, **facts: Any) -> None:
        """Write run.json: `facts`, versions, git hash and machine."""
        atomic_write(self.facts_file, json.dumps({**environment(), **facts}, indent=2) + "\n")

    def facts(self) -> dict[str, Any]:
        """What run.json says; empty before the first start has written it."""
        try:
            facts = json.loads(self.facts_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def lock(self) -> FileLock:
        """A lock held by the one process that trains here, released by the system if that process dies."""
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(f"{self.path} is being trained by another process; wait for it or stop it") from None
        return lock


def environment() -> dict[str, Any]:
    """Versions, git hash and machine: what is needed to tell two runs apart."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "source"
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": git_hash(),
        "python": platform.python_version(),
        "versions": versions,
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def git_hash() -> str | None:
    """Commit of the source this package runs from, with "-dirty" when changed; None outside a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        # A checkout that merely contains an installed copy of this package is somebody else's.
        if git("ls-files", "--error-unmatch", Path(__file__).name) == "":
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
