"""Rotary positions on interleaved pairs, with YaRN (arXiv 2104.09864, 2309.00071).

Pair i is coordinates (2i, 2i+1) and turns by position * f_i, f_i = theta^(-2i/P). YaRN leaves the fast pairs alone,
divides the frequency of the slow ones by `factor`, and blends in a ramp between. Kimi-K2 publishes beta_fast =
beta_slow = 1, which makes the ramp a step. YaRN's other half, the softmax scale, is ModelConfig.softmax_scale.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moonlet.config import ModelConfig, RopeScaling

Rotation = tuple[Tensor, Tensor]  # cos and sin, each fp32 [T, P/2], or [B, T, P/2] where rows differ


def frequencies(width: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """Radians a position of each pair, fp32 [width / 2]."""
    plain = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width)
    if scaling is None:
        return plain

    def pair_turning(rotations: float) -> float:
        """Index (on 0..width, as published) of the pair that turns `rotations` times over the original context."""
        length = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return width * math.log(length) / (2 * math.log(theta))

    low = max(math.floor(pair_turning(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_turning(scaling.beta_slow)), width - 1)
    span = high - low if high != low else 0.001
    ramp = ((torch.arange(width // 2, dtype=torch.float32, device="cpu") - low) / span).clamp(0, 1)
    return plain * (1 - ramp) + plain / scaling.factor * ramp


class Rope:
    """Cosines and sines of a model's positions, computed once a device and extended when a longer text comes."""

    def __init__(self, config: ModelConfig) -> None:
        self.frequencies = frequencies(config.qk_rope_head_dim, config.rope_theta, config.rope_scaling)
        self.multiplier = config.rope_scaling.rotation_multiplier if config.rope_scaling else 1.0
        self._table: dict[torch.device, Rotation] = {}

    def __call__(self, start: int | Tensor, length: int, device: torch.device) -> Rotation:
        """Rotation of positions start .. start + length - 1; `start` is an int or int64 [B]."""
        end = length + (start if isinstance(start, int) else int(start.max()))
        cos, sin = self._until(end, device)
        if isinstance(start, int):
            return cos[start:end], sin[start:end]  # (T, P/2)
        positions = start[:, None] + torch.arange(length, device=device)  # (B, T)
        return cos[positions], sin[positions]

    def _until(self, end: int, device: torch.device) -> Rotation:
        known = self._table.get(device)
        if known is None or known[0].shape[0] < end:
            size = max(256, 1 << (end - 1).bit_length())
            # The reference takes position * frequency in fp32; so do we, or long positions would differ.
            angle = torch.arange(size, dtype=torch.float32)[:, None] * self.frequencies.cpu()
            known = (angle.cos() * self.multiplier).to(device), (angle.sin() * self.multiplier).to(device)
            self._table[device] = known
        return known


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the pairs of x: [B, T, H, P] -> the same shape and dtype; the arithmetic is fp32."""
    cos, sin = rotation[0].unsqueeze(-2), rotation[1].unsqueeze(-2)  # (T, 1, P/2)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (B, T, H, P/2) each
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)
