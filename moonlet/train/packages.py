"""Versions of what moonlet stands on, and the optional packages with what each is for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

BASE = ("moonlet", "torch", "numpy", "tokenizers", "safetensors")


@dataclass(frozen=True)
class Package:
    """An optional package; `version` is None where it is missing, and `install` then the command that brings it."""

    name: str
    use: str
    version: str | None
    install: str


# distribution, what for, what to install
_OPTIONAL = (
    ("sentencepiece", "SentencePiece tokenizers", '"moonlet[sentencepiece]"'),
    ("pyarrow", ".parquet files", '"moonlet[parquet]"'),
    ("tensorboard", "TensorBoard", '"moonlet[tensorboard]"'),
    ("wandb", "Weights & Biases", '"moonlet[wandb]"'),
    ("lm-eval", "lm-eval tasks", '"moonlet[lm-eval]"'),
    ("fastapi", "moonlet serve", '"moonlet[serve]"'),
    ("ipywidgets", "prompt box in notebooks", '"moonlet[notebook]"'),
    ("transformers", "other people's models", "transformers"),
    ("flash-attn", "attention on NVIDIA GPUs", "flash-attn"),
    ("flash-linear-attention", "linear attention on GPUs", "flash-linear-attention"),
)


def base_versions() -> dict[str, str]:
    """Versions of moonlet and what it always needs."""
    return {name: installed(name) or "source" for name in BASE}


def optional_packages() -> list[Package]:
    """All that moonlet can use and does not need."""
    return [Package(name, use, installed(name), f"pip install {what}") for name, use, what in _OPTIONAL]


def installed(name: str) -> str | None:
    """The version of a distribution, or None; nothing is imported."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
