"""The matrices inside a parameter: what Muon orthogonalises each by itself.

A parameter [..., rows, columns] is a stack of matrices. A fused `gate_up_proj` [E, 2I, D] holds two maps an expert,
gate above up. Per-Head Muon (Kimi K3, arXiv 2607.24653 section 2.5) also cuts the projections of queries, keys and
values into the rows of each head: [H (K+P), in] into H, kv_b_proj [H (K+V), R] into H of keys and H of values. KDA's
three are cut into its own heads; its gates' matrices are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Size, Tensor, nn

from moonlet.model.gqa import GQA
from moonlet.model.kda import KDA
from moonlet.model.mla import MLA
from moonlet.optim.groups import group_of

# From a tensor in the parameter's shape to views of it, each [n, rows, columns], which together are the whole.
Cut = Callable[[Tensor], tuple[Tensor, ...]]


def cuts(model: nn.Module, per_head: bool) -> dict[str, Cut]:
    """How each of the model's parameters that is more than a plain stack is cut, by name."""
    found: dict[str, Cut] = {name: _halves for name, _ in model.named_parameters() if _is_fused(name)}
    if per_head:
        for path, module in model.named_modules():
            prefix = f"{path}." if path else ""
            found |= {f"{prefix}{name}.weight": cut for name, cut in _head_cuts(module).items()}
    return found


def matrix_counts(tensors: Mapping[str, Size]) -> dict[tuple[int, int], int]:
    """How many matrices of each shape (rows, columns) Muon has, from the shapes of a model's tensors alone.

    Heads are not cut apart.
    """
    found: dict[tuple[int, int], int] = {}
    for name, shape in tensors.items():
        if group_of(name, len(shape)) != "matrices":
            continue
        rows = shape[-2] // 2 if _is_fused(name) else shape[-2]
        found[rows, shape[-1]] = found.get((rows, shape[-1]), 0) + shape.numel() // (rows * shape[-1])
    return found


def stack(tensor: Tensor) -> tuple[Tensor, ...]:
    """[..., rows, columns] -> one view [n, rows, columns]."""
    return (tensor.view(tensor.shape[:-2].numel(), *tensor.shape[-2:]),)


def _is_fused(name: str) -> bool:
    return name.endswith("gate_up_proj")


def _halves(tensor: Tensor) -> tuple[Tensor, ...]:
    E, rows, columns = tensor.shape
    return (tensor.view(2 * E, rows // 2, columns),)


def _heads(*widths: int) -> Cut:
    """Rows that are, head after head, parts of these widths."""

    def cut(tensor: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.split(tensor.view(-1, sum(widths), tensor.shape[-1]), list(widths), dim=1))

    return cut


def _head_cuts(module: nn.Module) -> dict[str, Cut]:
    if isinstance(module, MLA):
        query = "q_b_proj" if module.query_is_low_rank else "q_proj"
        return {query: _heads(module.K + module.P), "kv_b_proj": _heads(module.K, module.V)}
    if isinstance(module, GQA | KDA):
        return dict.fromkeys(("q_proj", "k_proj", "v_proj"), _heads(module.K))
    return {}
