"""The recipe of `moonlet quickstart`: a time budget for two CPU cores, everything built in."""

from __future__ import annotations

from typing import Any

QUICKSTART: dict[str, Any] = {
    "name": "quickstart",
    "model": {"preset": "k2-nano"},
    "tokenizer": {"kind": "bpe", "vocab_size": 4096, "train_megabytes": 3.0},
    "data": {"kind": "story", "megabytes": 14.0, "valid_stories": 300},
    "train": {
        "minutes": 4.3,
        "seq_len": 256,
        "batch_size": 16,
        "eval_every": 100,
        "eval_bytes": 40_000,
        "sample_every": 100,
        "save_every": 200,
        "keep_last": 1,
    },
    "optim": {"lr": 3e-3, "warmup_steps": 30, "decay_fraction": 0.6},
}
