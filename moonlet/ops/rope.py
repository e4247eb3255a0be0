"""Turning pairs of channels by the position (arXiv 2104.09864); how far is model/rope.py's to say.

(even, odd) -> (even cos - odd sin, even sin + odd cos)
"""

from __future__ import annotations

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]  # cos and sin, each fp32 [T, P/2], or [B, T, P/2] where rows differ


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the interleaved pairs of x: [B, T, H, P] -> the same shape and dtype; the arithmetic is fp32."""
    cos, sin = rotation[0].unsqueeze(-2), rotation[1].unsqueeze(-2)  # (T, 1, P/2)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (B, T, H, P/2) each
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


def rotate_halves(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the pairs (i, i + P/2) of x's first P channels: [B, T, H, K] -> the same shape and dtype, in fp32."""
    cos, sin = rotation[0].unsqueeze(-2), rotation[1].unsqueeze(-2)  # (T, 1, P/2)
    half = cos.shape[-1]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    turned = torch.cat((first * cos - second * sin, first * sin + second * cos), -1).to(x.dtype)
    return turned if 2 * half == x.shape[-1] else torch.cat((turned, x[..., 2 * half :]), -1)
