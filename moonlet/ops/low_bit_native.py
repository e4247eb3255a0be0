"""Weights of four bits on a CPU: few rows against the codes themselves, many against an expert dequantised at a time.

The product with codes computes in fp32, and looks up a row's codes again for every three vectors. Many rows are cheaper
with the matrix dequantised once and the product left to the library, in bf16 the sooner, where that has instructions of
its own for it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.ops.low_bit_codes import Packed
from moonlet.ops.native.call import kernel, native_fits

FEW = {torch.float32: 128, torch.bfloat16: 24}
"""Rows that are multiplied with the codes; more are multiplied with the weight dequantised."""
_ROWS_TO = 16  # a library builds a kernel for every number of rows it has not met
_LANES = 128  # numbers in a block of the kernel's, to whose multiple it fills up a row
_PLAIN = (Tensor, torch.nn.Parameter)


def available(x: Tensor, *weights: Packed) -> bool:
    """Whether the kernels can multiply x with these: on a CPU, eagerly, x in fp32 or bf16, codes of four bits."""
    if not native_fits("low_bit", x):
        return False
    # Their dtypes are none of arithmetic; what matters is that they are memory here.
    return all(
        w.scheme != "fp8" and all(type(t) in _PLAIN and t.device.type == "cpu" for t in (w.codes, w.scale))
        for w in weights
    )


def native_linear(x: Tensor, weight: Packed) -> Tensor:
    """As `moonlet.ops.low_bit.low_bit_linear`."""
    rows = x.reshape(-1, x.shape[-1])
    few = len(rows) <= FEW[x.dtype]
    y = _product(rows.float(), weight).to(x.dtype) if few else F.linear(rows, _dequantized(weight, x.dtype))
    return y.view(*x.shape[:-1], y.shape[-1])


def native_experts(
    x: Tensor, gate_up: Packed, down: Packed, index: Tensor, weight: Tensor, plus: Tensor | None = None
) -> Tensor:
    """As `moonlet.ops.low_bit.low_bit_experts`; what experts are chosen for is added up in fp32."""
    A, flat = index.shape[1], index.flatten()
    counts = flat.bincount(minlength=gate_up.shape[0]).tolist()
    shares = weight.flatten().float()
    y = torch.zeros(x.shape) if plus is None else plus.to(torch.float32, copy=True)
    for e, copies in enumerate(flat.argsort(stable=True).split(counts)):
        if len(copies):
            token = copies // A
            out = _expert(x.index_select(0, token), gate_up[e], down[e])  # (n, D)
            y.index_add_(0, token, out.mul_(shares[copies, None]))
    return y.to(x.dtype)


def _expert(x: Tensor, gate_up: Packed, down: Packed) -> Tensor:
    """x [n, D] through gate_up [2, I, D] and down [D, I] -> fp32 [n, D]"""
    n = len(x)
    if n <= FEW[x.dtype]:
        gate, up = _product(x.float(), gate_up).chunk(2, -1)
        return _product(F.silu(gate).mul_(up), down)
    x = F.pad(x, (0, 0, 0, -n % _ROWS_TO))
    gate, up = F.linear(x, _dequantized(gate_up, x.dtype)).chunk(2, -1)  # (n, I) each
    return F.linear(F.silu(gate).mul_(up), _dequantized(down, x.dtype))[:n].float()


def _product(x: Tensor, weight: Packed) -> Tensor:
    """x fp32 [n, in] times the codes of [..., in], whose other axes are one -> [n, out]"""
    (*outs, width), n = weight.shape, len(x)
    assert x.shape[1] == width, f"rows of {x.shape[1]} against a weight of {width}"
    y = torch.empty(n, math.prod(outs))
    room = torch.empty(n, -(-width // _LANES) * _LANES)
    kernel("low_bit", "low_bit_product")(*_codes(weight), x.contiguous(), n, room, y)
    return y


def _dequantized(weight: Packed, dtype: torch.dtype) -> Tensor:
    """The weight [..., in], as a matrix [out, in]."""
    *outs, width = weight.shape
    out = torch.empty(math.prod(outs), width, dtype=dtype)
    kernel("low_bit", "low_bit_dequantize")(*_codes(weight), dtype == torch.bfloat16, out)
    return out


def _codes(weight: Packed) -> tuple[int | Tensor, ...]:
    """How the kernels take a weight: its scheme, places and sizes; bytes of codes and number of scales a row."""
    codes, scale = weight.codes.contiguous(), weight.scale.contiguous()
    *outs, width = weight.shape
    bytes_a_row = codes.shape[-1] * codes.element_size()
    return weight.scheme == "mxfp4", codes, scale, math.prod(outs), width, bytes_a_row, scale.shape[-1]
