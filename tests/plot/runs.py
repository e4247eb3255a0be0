"""Run folders made by hand: the metrics of a run without the training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from moonlet.config import recipe_from_dict
from moonlet.train.metrics import Metrics
from moonlet.train.run import Run
from tests.train import tiny

MODEL: dict[str, Any] = {
    **tiny.MODEL,
    "vocab_size": 272,
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


def make_run(folder: Path, steps: int = 60, name: str = "made", old: bool = False, sample: str = "Once it was") -> Run:
    """A run of `steps` steps of 8 tokens, evaluated every 20; `old`: without records of experts and routers."""
    recipe = {
        "name": name,
        "prompts": ["Once"],
        "model": MODEL,
        "tokenizer": {"kind": "byte"},
        "train": {"steps": steps, "seq_len": 4, "batch_size": 2},
    }
    run = Run.create(folder, recipe_from_dict(recipe))
    run.facts_file.write_text(json.dumps({"git": "0123456789abcdef-dirty", "device": "cpu"}), encoding="utf-8")
    metrics = Metrics(run.metrics_file)
    for step in range(1, steps + 1):
        values = {"lr": 1e-3, "grad_norm": 1 / step, "tokens_per_s": 4.0, "load_max": 2.0, "load_dead": 0.0}
        metrics.write("train", step, loss=5.0 + math.cos(step) / 9 - step / steps, **values)
        if step % 10 == 0 and not old:
            shares = {"load": [[0.5, 0.25, 0.25, 0.0]] * 2, "max_over_mean": [2.0] * 2, "entropy": [1.04] * 2}
            metrics.write("experts", step, layers=[1, 2], **shares)
            # Head 0 of each layer is known exactly and was clipped, head 1 only by its bound.
            logits = {"max_logits": [[2.0 * step, None]] * 3, "logit_bound": [[None, 30.0]] * 3, "clipped": [1] * 3}
            metrics.write("attention", step, layers=[0, 1, 2], gamma=[[0.5, 1.0]] * 3, **logits)
        if step % 20 == 0:
            metrics.write("eval", step, loss=4.0, bits_per_byte=2.0 - step / steps, bytes=10)
            metrics.write("sample", step, prompt="Once", text=f"{sample} {step}")
            if not old:
                metrics.write("routers", step, layers=[1, 2], entropy=[1.3, 1.2])
    metrics.close()
    return run


def add_model(run: Run) -> None:
    """Give the run a model with random weights and a byte tokenizer."""
    from moonlet.folder import save
    from moonlet.model.init import build
    from moonlet.text import ByteTokenizer

    tokenizer = ByteTokenizer()
    save(build(run.recipe().model.replace(vocab_size=tokenizer.vocab_size)), tokenizer, run.model)
