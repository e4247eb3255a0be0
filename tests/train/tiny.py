"""A run small enough to train in a test: a byte tokenizer, a few lines of text, two layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg  # noqa: F401  (child processes are forked with everything imported)
import pytest
import torch
import torch._dynamo
from rich.console import Console

from moonlet.cli import job
from moonlet.config import ModelConfig, Recipe, recipe_from_dict
from moonlet.config.sections import OptimSettings
from moonlet.model.init import build
from moonlet.model.model import CausalLM
from moonlet.optim.optimizer import build_optimizer
from moonlet.plot.loss import draw_loss
from moonlet.train.run import Run
from moonlet.train.step import StepResult, train_step

TEXT = "\n<|endoftext|>\n".join(f"Story {i}: the {w} ran to the {v}." for i, (w, v) in enumerate(
    (w, v) for w in ("cat", "dog", "hen", "fox", "cow") for v in ("hill", "barn", "pond", "wood", "road", "shed")
))  # fmt: skip

MODEL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
}


def model() -> CausalLM:
    """A model of 64 tokens."""
    return build(ModelConfig(**MODEL, vocab_size=64, initializer_range=0.1))


def batch(seed: int, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of 16 tokens for `model`."""
    tokens = torch.randint(0, 64, (rows, 17), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def step(model: CausalLM, batches: list[Any], optimizer: Any = None, **changes: Any) -> StepResult:
    """One step over `batches`, each a micro-batch."""
    optimizer = optimizer or build_optimizer(model, OptimSettings())
    settings = {"count": len(batches), "lr": 1e-2, "grad_clip": 1.0, "bias_update_speed": 1e-3} | changes
    return train_step(model, optimizer, batches, **settings)


def recipe(folder: Path, *overrides: str) -> Recipe:
    """A recipe over a text file that is written into `folder`."""
    file = folder / "text.txt"
    if not file.exists():
        file.write_text(TEXT, encoding="utf-8")
    base = {
        "name": "tiny",
        "prompts": [],
        "model": MODEL,
        "tokenizer": {"kind": "byte"},
        "data": {"kind": "text", "path": str(file)},
        "train": {
            "steps": 12,
            "seq_len": 16,
            "batch_size": 4,
            "micro_batch_size": 2,
            "threads": 1,
            "dtype": "float32",
            "eval_every": 5,
            "sample_every": 0,
            "sample_tokens": 4,
            "save_every": 2,
        },
        "optim": {"lr": 1e-2, "warmup_steps": 3},
    }
    return recipe_from_dict(base, overrides)


def quiet() -> Console:
    """A console nobody reads."""
    return Console(quiet=True)


@contextmanager
def drawn() -> Iterator[None]:
    """Runs draw loss.png again, which `tests.conftest.brisk` spares the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "draw_loss", draw_loss)
        yield


def go_on(path: Path) -> None:
    """Train in the run folder `path` to its end: the target of child processes."""
    job.go_on(Run.open(path), quiet())
