"""What Muon does beside its products (arXiv 2502.16982 section 2.2), for blocks [n, rows, columns] of one shape:

    look_ahead    M <- mu M + G;   G + mu M             move    W <- keep W - size O

`foreach` is the law, an operation after the other over all blocks; `native` reads and writes each number once.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from moonlet.ops.dispatch import implementation, register
from moonlet.ops.native.call import kernel, native_fits

_Blocks = list[Tensor]


def look_ahead(momenta: _Blocks, gradients: _Blocks, mu: float) -> Tensor:
    """Bring the momenta up to date, in place.

    Args:
        momenta, gradients: as many blocks each, [n, rows, columns] with an n of their own; momenta fp32.

    Returns:
        G + mu M of all blocks, joined: [sum of n, rows, columns].
    """
    return implementation("look_ahead", _choice(momenta, gradients))(momenta, gradients, mu)  # type: ignore[no-any-return]


def move(weights: _Blocks, updates: Tensor, keep: float, size: float) -> None:
    """Change the weights, in place.

    Args:
        weights: blocks [n, rows, columns].
        updates: O of all blocks, joined.
        keep: what decay leaves of the weights.
        size: by how much of the updates they move, the rate included.
    """
    implementation("move", _choice(weights, [updates]))(weights, updates, keep, size)


@register("look_ahead", "foreach")
def _look_ahead(momenta: _Blocks, gradients: _Blocks, mu: float) -> Tensor:
    torch._foreach_mul_(momenta, mu)
    torch._foreach_add_(momenta, gradients)
    ahead = torch.cat(gradients)
    torch._foreach_add_(ahead.split([len(m) for m in momenta]), momenta, alpha=mu)
    return ahead


@register("move", "foreach")
def _move(weights: _Blocks, updates: Tensor, keep: float, size: float) -> None:
    torch._foreach_mul_(weights, keep)
    torch._foreach_add_(weights, updates.split([len(w) for w in weights]), alpha=-size)


@register("look_ahead", "native")
def _native_look_ahead(momenta: _Blocks, gradients: _Blocks, mu: float) -> Tensor:
    ahead = torch.empty(sum(map(len, momenta)), *momenta[0].shape[1:])
    sweep = kernel("momentum", "momentum_ahead")
    sweep(_addresses(momenta), _addresses(gradients), _sizes(momenta), len(momenta), float(mu), ahead)
    return ahead


@register("move", "native")
def _native_move(weights: _Blocks, updates: Tensor, keep: float, size: float) -> None:
    sweep = kernel("momentum", "momentum_move")
    sweep(_addresses(weights), updates, _sizes(weights), len(weights), float(keep), float(size))


def _choice(*blocks: _Blocks) -> str:
    tensors = [t for some in blocks for t in some]
    plain = all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
    return "native" if plain and native_fits("momentum", *tensors) else "foreach"


def _addresses(blocks: _Blocks) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(blocks))(*(t.data_ptr() for t in blocks))


def _sizes(blocks: _Blocks) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(blocks))(*(t.numel() for t in blocks))
