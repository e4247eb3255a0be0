"""A moonlet model as a GGUF file that llama.cpp runs, for benchmarks: the same weights, and no tokenizer, as these
speak in token ids.

Needs the package `gguf` (pip install gguf).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from moonlet.hub.gguf.limits import architecture
from moonlet.hub.gguf.write import write_gguf as write
from moonlet.model.model import CausalLM


def write_gguf(model: CausalLM, file: Path, kind: str = "BF16") -> Path:
    """Write `model` to `file` and return it.

    Args:
        kind: of matrices; vectors and routers are fp32. "BF16+Q4_0": of the routed experts another.

    Raises:
        ValueError: gguf is missing, an unknown kind, or a model that llama.cpp has no form for.
    """
    kind, _, experts = kind.partition("+")
    return write(model, None, file, kind, experts=experts or None).path


def check(model: CausalLM) -> None:
    """Raise ValueError where llama.cpp's form would compute something else."""
    architecture(model.config)
    # Of no account once a model is trained, but a benchmark's weights are random and its queries and keys short.
    if model.config.num_kda_layers and model.config.rms_norm_eps != 1e-6:
        raise ValueError(f"llama.cpp takes rms_norm_eps {model.config.rms_norm_eps:g} for KDA's lengths too, not 1e-6")
