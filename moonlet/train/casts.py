"""Weights in the compute dtype, made once a step.

The masters are fp32 and every product wants them in the compute dtype. Cast where they are used, as a model outside of
training does, each is cast anew in every micro-batch. Inside `cast_once` a copy stands in each master's place, made
when the step begins; casting it is nothing. Its gradient goes to the master as soon as it is complete, in fp32,

    master.grad += float(copy.grad)        a micro-batch

which are autograd's own bits for a cast, as every one of these weights is used once in a forward. MOONLET_OPS with
"weight_cast=each" leaves the masters where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moonlet.model.linear import Linear
from moonlet.model.model import CausalLM
from moonlet.model.moe import Experts
from moonlet.ops.dispatch import implementation, register

# What casts its weights to the dtype of its input and uses them for nothing else. The embedding casts the rows it has
# looked up, and a head tied to it is cast where it is used: both their gradients meet in the master before they are
# added to earlier ones. Norms, routers and the rates of KDA need their masters, or are too small to matter.
_CASTING = (Linear, Experts)


@contextmanager
def cast_once(model: CausalLM) -> Iterator[None]:
    """Forwards and backwards inside the block share one copy of each weight; the masters must not change in it."""
    with implementation("weight_cast", "once")(model):
        yield


@register("weight_cast", "each")
def _each(model: CausalLM) -> Any:
    """The law: cast where it is used."""
    return nullcontext()


@register("weight_cast", "once")
@contextmanager
def _once(model: CausalLM) -> Iterator[None]:
    places = _places(model)
    if not places:
        yield
        return
    masters: list[Tensor] = list({id(master): master for _, _, master in places}.values())
    stand_ins: dict[int, nn.Parameter] = {}
    for master, copy in zip(masters, copies_of(masters, model.dtype), strict=True):
        stand_ins[id(master)] = stand_in = nn.Parameter(copy, master.requires_grad)
        if master.requires_grad:
            stand_in.register_post_accumulate_grad_hook(partial(_hand_on, master))
    try:
        for module, name, master in places:
            module._parameters[name] = stand_ins[id(master)]
        yield
    finally:
        for module, name, master in places:
            module._parameters[name] = master


@torch.no_grad()
def copies_of(masters: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Each of `masters` in `dtype`; on a GPU in a few kernels for all of them."""
    copies = [torch.empty_like(master, dtype=dtype) for master in masters]
    torch._foreach_copy_(copies, masters)
    return copies


def _places(model: CausalLM) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Where a parameter of another dtype is used in the compute dtype alone: module, name, and the parameter."""
    return [
        (module, name, parameter)
        for module in model.modules()
        if isinstance(module, _CASTING)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dtype != model.dtype
    ]


def _hand_on(master: Tensor, copy: Tensor) -> None:
    """Add the gradient of a copy to its master's, and drop it."""
    assert copy.grad is not None
    if master.grad is None:
        master.grad = copy.grad.to(master.dtype)
    else:
        master.grad.add_(copy.grad)
    copy.grad = None
