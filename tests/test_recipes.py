"""Every recipe's smoke form runs, from the command a person types to a model that speaks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import moonlet
from moonlet.config import load_recipe
from moonlet.train.metrics import read_metrics
from tests.cli import command

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.toml"))
# These draw their sequences and read no text.
RECALL = {"recall-mqar": "mqar", "recall-palindrome": "palindrome", "recall-stack": "stack"}
# These read the story world, not TinyStories.
STORY = ("story-questions", "linear-nano")
# Needs the weights that another recipe makes.
AFTER = {"context-extension": "context-base"}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A recipe's number of threads is its own."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def smoke(name: str, out: Path, *overrides: str) -> Path:
    """Train the smoke form of a recipe into out/NAME, which it returns; one of them in a process of its own."""
    call = command.process if name == "recall-stack" else command.moonlet
    done = call("train", FOLDER / f"{name}.toml", "--smoke", "--out", out / name, *overrides)
    assert done.returncode == 0, done.stderr + done.stdout
    return out / name


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_smoke_form_trains_and_its_model_speaks(name: str, tmp_path: Path) -> None:
    before = AFTER.get(name)
    init = [f"train.init={smoke(before, tmp_path)}"] if before else []
    run = smoke(name, tmp_path, *init)
    losses = [record["loss"] for record in read_metrics(run / "metrics.jsonl", "train")]
    assert all(map(math.isfinite, losses))
    # Two steps of warm-up teach nothing that could be seen; and fine-tuning starts from what was learnt before.
    assert losses[-1] < losses[0] or before or len(losses) < 10
    model, tokenizer = moonlet.load(run)
    # A recall task knows the words of its own prompts only.
    prompt = load_recipe(run / "recipe.toml").prompts[0] if name in RECALL else "Once"
    text = moonlet.generate(model, tokenizer, prompt, max_new_tokens=4, seed=0)
    assert text.startswith(prompt)
    assert tokenizer.encode(text)[: len(tokenizer.encode(prompt))] == tokenizer.encode(prompt)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete_and_has_a_smoke_form_without_a_network(name: str, tmp_path: Path) -> None:
    if name in AFTER:
        pytest.skip("reads the architecture of a run that does not exist here")
    recipe = load_recipe(FOLDER / f"{name}.toml")
    assert recipe.name == name
    kind = RECALL.get(name, "story")
    assert recipe.data.kind == (kind if name in RECALL or name in STORY else "tinystories")
    assert load_recipe(FOLDER / f"{name}.toml", smoke=True).data.kind == kind
    # The same recipe reads a file in place of the hub.
    if recipe.data.kind == "tinystories":
        assert load_recipe(FOLDER / f"{name}.toml", ["data.path=x.txt"]).data.path == "x.txt"
