"""Weights that lie in memory in few bits, alone or stacked as experts are; `ops/formats` has the codes themselves.

| scheme | codes of a weight [out, in] | scales | a number is |
|---|---|---|---|
| `int4` | int32 [out, ceil(in/8)], eight to a word | bf16 [out, ceil(in/32)] | (code - 8) scale |
| `mxfp4` | uint8 [out, ceil(in/2)], two to a byte | uint8 [out, ceil(in/32)] | e2m1(code) 2^(scale - 127) |
| `fp8` | float8_e4m3fn [out, in] | fp32 [ceil(out/128), ceil(in/128)] | code scale, whatever the scale's name |

These are the published layouts: compressed-tensors' `pack-quantized` and `mxfp4-pack-quantized`, and the blocks of
DeepSeek-V3 and Kimi-K2. Leading axes, those of stacked experts, pass through everything here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.ops.formats import fp8, int4, mxfp4

Scheme = Literal["int4", "mxfp4", "fp8"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
GROUP = int4.GROUP  # inputs that share a scale, of mxfp4 too
CODES: dict[Scheme, torch.dtype] = {"int4": torch.int32, "mxfp4": torch.uint8, "fp8": torch.float8_e4m3fn}
SCALES: dict[Scheme, torch.dtype] = {"int4": torch.bfloat16, "mxfp4": torch.uint8, "fp8": torch.float32}


@dataclass(frozen=True)
class Packed:
    """A weight [..., out, width] in few bits; the table above has the dtypes and shapes of its two tensors."""

    scheme: Scheme
    codes: Tensor
    scale: Tensor
    width: int

    @property
    def shape(self) -> torch.Size:
        """Of the weight that it stands for."""
        return torch.Size((*self.codes.shape[:-1], self.width))

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scale.nbytes

    def __getitem__(self, index: int | Tensor) -> Packed:
        """Of the first axis, which must not be that of the rows."""
        assert self.codes.dim() > 2
        return Packed(self.scheme, self.codes[index], self.scale[index], self.width)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [..., out, width], exact in fp32 but for codes of fp8, whose product with the scale is rounded."""
        return _dequantize(self, dtype)


def packed_shapes(scheme: Scheme, out: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of codes and of scales of a weight [out, width]."""
    if scheme == "fp8":
        return (out, width), (-(-out // fp8.BLOCK), -(-width // fp8.BLOCK))
    per = 8 if scheme == "int4" else 2
    return (out, -(-width // per)), (out, -(-width // GROUP))


def quantize(weight: Tensor, scheme: Scheme) -> Packed:
    """The nearest codes of a weight [..., out, in], under the scales that `ops/formats` chooses.

    Raises:
        ValueError: a scheme that does not exist, or numbers that are not finite.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"no scheme {scheme!r} for weights of few bits; valid: {', '.join(SCHEMES)}")
    weight, width = weight.detach(), weight.shape[-1]
    if scheme == "fp8":
        matrices = weight.reshape(-1, *weight.shape[-2:])
        codes, scale = (torch.stack(parts) for parts in zip(*map(fp8.quantize, matrices), strict=True))
    else:
        # Rows are independent of each other, so a stack is one tall matrix.
        rows = weight.reshape(-1, width)
        codes, scale = int4.quantize(rows)[:2] if scheme == "int4" else mxfp4.quantize(F.pad(rows, (0, width % 2)))
    of_codes, of_scale = packed_shapes(scheme, *weight.shape[-2:])
    stack = weight.shape[:-2]
    return Packed(scheme, codes.view(*stack, *of_codes), scale.view(*stack, *of_scale), width)


def _dequantize(packed: Packed, dtype: torch.dtype) -> Tensor:
    width = packed.width
    if packed.scheme == "fp8":
        pairs = zip(*(x.reshape(-1, *x.shape[-2:]) for x in (packed.codes, packed.scale)), strict=True)
        return torch.stack([fp8.dequantize(codes, scale, dtype) for codes, scale in pairs]).view(packed.shape)
    codes, scale = (x.reshape(-1, x.shape[-1]) for x in (packed.codes, packed.scale))
    if packed.scheme == "int4":
        return int4.dequantize(codes, scale, (len(codes), width), dtype).view(packed.shape)
    return mxfp4.dequantize(codes, scale, dtype)[:, :width].contiguous().view(packed.shape)
