"""README is true: every Python snippet and every moonlet command in it runs, in the order in which they stand there.

A folder stands in for the reader's: small files and a tiny run under the names that README uses. What would take
minutes is run in its smoke form, or for a few seconds on a smaller corpus; nothing else is changed.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from moonlet.cli import job
from moonlet.config.quickstart import QUICKSTART
from moonlet.data import StoryCorpus
from moonlet.data.corpus import write_documents
from tests.cli import command
from tests.train import tiny

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of README in one language ("" for none)."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every line of README that runs moonlet, its remark removed."""
    lines = (line.split(" #")[0].strip() for block in blocks("") for line in block.splitlines())
    return [line for line in lines if line.startswith(".venv/bin/moonlet ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a reader has after `make quickstart`, only smaller."""
    path = tmp_path_factory.mktemp("reader")
    for name in ("train", "valid"):
        (path / f"{name}.txt").write_text(tiny.TEXT.replace("ran", f"ran to {name}"), encoding="utf-8")
    write_documents(StoryCorpus(megabytes=0.2, valid_stories=1).documents("train"), path / "stories.txt")
    shutil.copytree(ROOT / "recipes", path / "recipes")
    for name in ("quickstart", "tinystories"):
        job.start(tiny.recipe(path, "model.max_position_embeddings=1024"), path / "runs" / name, tiny.quiet())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        yield path


def test_readme_has_snippets() -> None:
    assert len(blocks("python")) >= 4
    assert len(commands()) >= 7


@pytest.mark.slow
def test_every_python_snippet_runs(folder: Path) -> None:
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("line", commands())
def test_every_command_runs(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = shlex.split(line)[1:]
    if arguments[0] == "train" and "--dry-run" not in arguments:
        arguments += ["--smoke"]
    if arguments[0] == "quickstart":
        arguments += ["--minutes", "0.03", "--out", "runs/another"]
        monkeypatch.setitem(QUICKSTART, "data", {"kind": "story", "megabytes": 1.0, "valid_stories": 20})
    call = command.process if arguments[0] == "generate" else command.moonlet
    done = call(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
