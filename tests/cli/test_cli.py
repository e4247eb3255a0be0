"""The command line as a person meets it: help with examples, one-line errors, the whole job from verb to verb."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moonlet.config import toml
from tests.cli.command import moonlet, process
from tests.train import tiny

VERBS = (
    "quickstart",
    "data",
    "tokenizer",
    "train",
    "resume",
    "generate",
    "eval",
    "inspect",
    "convert",
    "plot",
    "doctor",
)


def test_help_lists_every_verb() -> None:
    out = process("--help").stdout
    assert all(f" {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_has_an_example(verb: str) -> None:
    done = moonlet(verb, "--help")
    assert done.returncode == 0
    assert f"moonlet {verb}" in done.stdout
    assert "Example" in done.stdout


def test_quickstart_names_the_nearest_preset(tmp_path: Path) -> None:
    done = moonlet("quickstart", "--model", "k2-nanno", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "k2-nano" in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['moonlet', '--help']\n"
        "from moonlet.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    file = folder / "tiny.toml"
    file.write_text(toml.dumps(tiny.recipe(folder).to_dict()), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "none.toml"], "no recipe at none.toml"),
        (["train", "RECIPE", "train.stpes=3"], "did you mean 'train.steps'"),
        (["train", "RECIPE", "train.steps"], "not of the form a.b=c"),
        (["train", "RECIPE", "train.batch_size=3"], "train.batch_size 3 is not a multiple"),
        (["train", "RECIPE", "data.path=none.txt"], "none.txt"),
        (["train", "RECIPE", "optim.kind=sgd"], "valid: adamw"),
        (["train", "RECIPE", "train.device=cuda:9"], "train.device is 'cuda:9'"),
        (["resume", "nowhere"], "nowhere is not a run folder"),
        (["generate", "nowhere", "Once"], "nowhere: no such folder"),
        (["eval", "nowhere"], "nowhere"),
        (["inspect", "kimi-k3x"], "did you mean 'kimi-k2'"),
        (["frobnicate"], "frobnicate"),
        (["train"], "Missing argument"),
    ],
)
def test_a_users_error_is_one_line_and_exit_code_2(
    arguments: list[str], expected: str, recipe: Path, tmp_path: Path
) -> None:
    done = moonlet(*(str(recipe) if a == "RECIPE" else a for a in arguments), cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["generate", "nowhere", "Once"], ["train"]], ids=" ".join)
def test_a_process_of_its_own_ends_alike(arguments: list[str], tmp_path: Path) -> None:
    one, other = process(*arguments, cwd=tmp_path), moonlet(*arguments, cwd=tmp_path)
    assert (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)


def test_train_resume_eval_and_generate_from_verb_to_verb(recipe: Path, tmp_path: Path) -> None:
    done = process("train", recipe, "train.steps=6", "prompts=['Story']", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "tiny"
    assert "bits per byte" in done.stdout
    assert "## Step 6" in (run / "samples.md").read_text()
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    again = moonlet("train", recipe, "train.steps=2", "optim.warmup_steps=1", cwd=tmp_path)
    assert again.returncode == 0
    assert (tmp_path / "runs" / "tiny-2").is_dir()  # the first run was not written over
    assert moonlet("resume", run).returncode == 0
    text = tmp_path / "text.txt"
    text.write_text("Story 1: the cat ran to the hill.", encoding="utf-8")
    evaluated = moonlet("eval", run, "--data", text)
    assert "bits per byte" in evaluated.stdout, evaluated.stderr
    own = moonlet("eval", run / "model")
    assert own.returncode == 2
    assert "--data" in own.stderr
    told = process("generate", run, "Story", "--max-new-tokens", 5, "--seed", 1)
    assert told.returncode == 0, told.stderr
    assert "Story" in told.stdout
    chat = ["generate", run, "Hi", "--max-new-tokens", 5, "--seed", 1, "--chat"]
    answered = moonlet(*chat, "--chat-form", "k2.5")
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.startswith("(thinking) ")
    assert "one of k2, k2-0905" in moonlet(*chat).stderr  # a run says nothing of chats
    inspected = json.loads(moonlet("inspect", run, "--json").stdout)
    assert inspected
