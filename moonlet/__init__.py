"""moonlet: a small, whole Kimi.

    model, tokenizer = moonlet.load(PATH)       # a run folder or a Hugging Face directory
    model = moonlet.build("k2-nano")            # a preset's name, or a ModelConfig
    logits = model(tokens)                      # int64 [B, T] -> [B, T, vocabulary]
    moonlet.save(model, tokenizer, PATH)
    moonlet.generate(model, tokenizer, ["Once upon a time"])
    moonlet.pretrain("recipes/tinystories.toml", "runs/tinystories")
    moonlet.widgets.prompt_box(model, tokenizer)          # in a notebook
    moonlet.count(moonlet.preset("kimi-k2")).total

Importing this package imports nothing heavy: each name below is found when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moonlet import generate as generate
    from moonlet import widgets as widgets
    from moonlet.cli.job import pretrain as pretrain
    from moonlet.config import ModelConfig as ModelConfig
    from moonlet.config import preset as preset
    from moonlet.folder import load as load
    from moonlet.folder import save as save
    from moonlet.model.count import count as count
    from moonlet.model.init import build as build

__version__ = "0.1.0"
__all__ = ["ModelConfig", "__version__", "build", "count", "generate", "load", "preset", "pretrain", "save", "widgets"]

_HOME = {
    "ModelConfig": "moonlet.config",
    "build": "moonlet.model.init",
    "count": "moonlet.model.count",
    "load": "moonlet.folder",
    "preset": "moonlet.config",
    "pretrain": "moonlet.cli.job",
    "save": "moonlet.folder",
}


def __getattr__(name: str) -> Any:
    if name in ("generate", "widgets"):
        # Rooms; moonlet.generate is itself callable, see its module.
        return import_module(f"moonlet.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'moonlet' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
