"""Every option of the architecture trains, resumes to the same bits, saves and generates, as the default one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moonlet.cli import job
from moonlet.folder import load
from moonlet.generate import generate
from moonlet.model.model import CausalLM
from moonlet.optim.optimizer import build_optimizer
from moonlet.train.checkpoint import newest_good
from moonlet.train.metrics import read_metrics
from moonlet.train.run import Run
from tests.train import tiny

OPTIONS = {
    "grouped queries, tied": ["kv_lora_rank=null", "num_key_value_heads=1", "tie_word_embeddings=true"],
    "dense, every head its own": ["kv_lora_rank=null", "n_routed_experts=0"],
    "softmax, every other layer, linear rope": [
        "scoring_func=softmax",
        "moe_layer_freq=2",
        "num_hidden_layers=3",
        "rope_scaling.type=linear",
        "rope_scaling.factor=2",
    ],
}


class Cut(Exception):
    """Stands for a kill."""


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = newest_good(run / "checkpoints")
    assert newest is not None
    return load_file(newest / "model.safetensors")


@pytest.mark.parametrize("option", OPTIONS)
def test_it_learns_and_resumes_to_the_same_bits(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny.recipe(tmp_path, *(f"model.{change}" for change in OPTIONS[option]), "train.steps=10")
    job.start(recipe, tmp_path / "straight", tiny.quiet())
    losses = [r["loss"] for r in read_metrics(tmp_path / "straight" / "metrics.jsonl", "train")]
    assert losses[-1] < losses[0] - 0.5

    original, seen = CausalLM.loss, 0

    def cut(self: CausalLM, *args: torch.Tensor | None) -> torch.Tensor:
        nonlocal seen
        seen += self.training
        if seen == 14:  # in the seventh step
            raise Cut
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(CausalLM, "loss", cut)
    with pytest.raises(Cut):
        job.start(recipe, tmp_path / "cut", tiny.quiet())
    monkeypatch.undo()
    job.go_on(Run.open(tmp_path / "cut"), tiny.quiet())
    straight, resumed = weights(tmp_path / "straight"), weights(tmp_path / "cut")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)

    model, tokenizer = load(tmp_path / "cut")
    texts = generate(model, tokenizer, ["Story", "S"], max_new_tokens=8, temperature=0.0)
    assert texts == [generate(model, tokenizer, p, max_new_tokens=8, temperature=0.0) for p in ("Story", "S")]


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_tied_matrix_is_stepped_once(kind: str, tmp_path: Path) -> None:
    from moonlet.model.init import build

    recipe = tiny.recipe(tmp_path, "model.tie_word_embeddings=true", f"optim.kind={kind}", "optim.weight_decay=0.5")
    model = build(recipe.model)
    tied = model.model.embed_tokens.weight
    optimizer = build_optimizer(model, recipe.optim)
    before = tied.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(0.1)  # a gradient of zero leaves the decay alone
    torch.testing.assert_close(tied, before * (1 - 0.1 * 0.5))
    assert not any("lm_head" in name for name in optimizer.state())
