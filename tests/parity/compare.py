"""What the comparisons with transformers share: relative errors of logits and gradients, folders both ways."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from moonlet.hub.read import read_model
from moonlet.hub.write import write_model
from moonlet.model.model import CausalLM

TOLERANCE = 1e-5  # relative: largest difference over largest value


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and its remark on empty tensors."""
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # shared experts of width 0
        warnings.filterwarnings("ignore", "`rope_scaling` is deprecated")  # Kimi Linear's published file names it
        yield


def text(vocab_size: int, rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def error(a: Tensor, b: Tensor) -> float:
    """Largest difference over largest value of the oracle's `b`."""
    return ((a - b).abs().max() / b.abs().max()).item()


def gradients(model: nn.Module, logits: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Of the mean cross-entropy of next tokens, by parameter name; empty parameters are left out."""
    model.zero_grad()
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.numel() and p.grad is not None}


def differences(ours: CausalLM, oracle: PreTrainedModel, tokens: Tensor) -> dict[str, float]:
    """Relative error of the logits and of each parameter's gradient, by name."""
    our_logits, logits = ours(tokens), oracle(tokens).logits
    ours_g, oracle_g = gradients(ours, our_logits, tokens), gradients(oracle, logits, tokens)
    assert set(ours_g) == {name for name, p in ours.named_parameters() if p.numel()} == set(oracle_g)
    return {"logits": error(our_logits, logits)} | {name: error(ours_g[name], g) for name, g in oracle_g.items()}


# The kernels are as near to fp64 as PyTorch's own operators (tests/ops), but sum in an order of their own; deep models
# of small random weights then part by the 1e-5 that fp32 leaves open, as two of PyTorch's attentions do.
KERNELS_TOLERANCE = 2 * TOLERANCE


def too_large(errors: dict[str, float], tolerance: float = TOLERANCE) -> dict[str, float]:
    """Those beyond the tolerance, NaN included."""
    return {name: e for name, e in errors.items() if not e <= tolerance}


@torch.no_grad()
def show_every_detail(model: nn.Module) -> None:
    """Make gains and biases random, so that leaving one out shows."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("e_score_correction_bias"):
            value.copy_(0.2 * torch.randn(value.shape))
        elif "norm" in name:
            value.add_(0.3 * torch.randn(value.shape))


def read_ours(oracle: PreTrainedModel, folder: Path) -> CausalLM:
    """Ours, from the folder that the oracle writes."""
    oracle.save_pretrained(folder)
    return read_model(folder).eval()


def read_theirs(ours: CausalLM, folder: Path, kind: type[PreTrainedModel], **settings: Any) -> PreTrainedModel:
    """The oracle, from the folder that we write; nothing may be missing but tensors that are empty."""
    write_model(ours, folder)
    theirs, report = kind.from_pretrained(folder, output_loading_info=True, attn_implementation="eager", **settings)
    empty = {name for name, value in theirs.state_dict().items() if not value.numel()}
    assert set(report["missing_keys"]) <= empty
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return theirs.eval()  # type: ignore[no-any-return]
