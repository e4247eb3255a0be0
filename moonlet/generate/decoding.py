"""Which decode step a model gets: the native one where it can run, else the one in PyTorch.

`MOONLET_OPS=decode_step=plain` (or `ops.dispatch.force`) chooses the latter in any case, MOONLET_NATIVE=0 too.
"""

from __future__ import annotations

import torch
from torch import nn

from moonlet.generate.native_step import NativeStep, why_not_native
from moonlet.generate.step import Step
from moonlet.model.linear import Linear
from moonlet.model.model import CausalLM
from moonlet.model.moe import Experts
from moonlet.ops.dispatch import chosen, implementation, register


def new_step(model: CausalLM, exact: bool = True) -> Step | NativeStep:
    """The decode step of `model`: (tokens int64 [B], cache) -> logits [B, vocab_size].

    Args:
        exact: whether a row's logits must not depend, even in the last bit, on the other rows; the native step's never
            do.
    """
    made: Step | NativeStep = implementation("decode_step", _choice(model))(model, exact)
    return made


def is_native(model: CausalLM) -> bool:
    """Whether `new_step` makes a native one."""
    return chosen("decode_step", _choice(model)) == "native"


def lay_out(model: CausalLM) -> None:
    """Store every matrix in the order that its decode step streams fastest, in place; its values and shape stay.

    The native step reads them row by row, as they are. In PyTorch one row times a matrix reads it once from memory, and
    the library does so about 1.5 times as fast where it lies column by column. For a model that will only generate: in
    training it changes the last bits of sums.
    """
    if is_native(model):
        return
    for name, module in model.named_modules():
        # kv_b_proj is used in two halves a head, for which the usual order is right.
        if isinstance(module, Linear) and not name.endswith("kv_b_proj"):
            _by_columns(module.weight)
        elif isinstance(module, Experts):
            _by_columns(module.gate_up_proj)
            _by_columns(module.down_proj)


def _by_columns(parameter: nn.Parameter) -> None:
    if parameter.dtype != torch.float32:
        return  # bf16 goes through another library, which is slower in this order
    parameter.data = parameter.data.transpose(-1, -2).contiguous().transpose(-1, -2)


def _choice(model: CausalLM) -> str:
    return "plain" if why_not_native(model) else "native"


@register("decode_step", "plain")
def _plain(model: CausalLM, exact: bool) -> Step:
    return Step(model, exact)


@register("decode_step", "native")
def _native(model: CausalLM, exact: bool) -> NativeStep:
    why = why_not_native(model)
    if why:
        raise ValueError(f"MOONLET_OPS asks for decode_step=native, which this model cannot have ({why}); leave it out")
    return NativeStep(model)
