"""Rotary positions (arXiv 2104.09864), and how they reach beyond the length a model was trained at.

Pair i turns by position * f_i, f_i = theta^(-2i/P). Which two channels are a pair is the family's choice: (2i, 2i+1),
interleaved, with MLA; (i, i + P/2), halves, with GQA as Llama and GLM have it. Scaling changes f:

    linear     f_i / factor
    YaRN       f_i for fast pairs, f_i / factor for slow ones, and a ramp between. Kimi-K2 publishes beta_fast =
               beta_slow = 1, which makes the ramp a step. cos and sin are multiplied by `rotation_multiplier`; with MLA
               the rest of YaRN is in ModelConfig.softmax_scale
    dynamic    theta becomes theta (factor n / M - factor + 1)^(P/(P-2)) once a text's length n exceeds M, the trained
               length: all of the text, read at once, is turned by the frequencies of its whole length

With a cache, dynamic frequencies follow the length that each row has reached: a token and its key are turned by those
of the length at which they are read, and keys already cached keep their rotation, as in transformers. So beyond M a
text read in pieces is not quite the text read at once. Unlike there, a row's frequencies never depend on other rows or
on earlier texts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moonlet.config import ModelConfig, RopeScaling
from moonlet.ops.rope import Rotation, rotate, rotate_halves

__all__ = ["Rope", "Rotation", "dynamic_frequencies", "frequencies", "rope_of", "rotate", "rotate_halves"]


def frequencies(width: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """Radians a position of each pair, fp32 [width / 2]; with dynamic scaling, those up to the trained length."""
    plain = 1.0 / theta ** _exponents(width)
    if scaling is None or scaling.type == "dynamic":
        return plain
    if scaling.type == "linear":
        return plain / scaling.factor

    def pair_turning(rotations: float) -> float:
        """Index (on 0..width, as published) of the pair that turns `rotations` times over the original context."""
        length = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return width * math.log(length) / (2 * math.log(theta))

    low = max(math.floor(pair_turning(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_turning(scaling.beta_slow)), width - 1)
    span = high - low if high != low else 0.001
    ramp = ((torch.arange(width // 2, dtype=torch.float32, device="cpu") - low) / span).clamp(0, 1)
    return plain * (1 - ramp) + plain / scaling.factor * ramp


def dynamic_frequencies(width: int, theta: float, factor: float, trained: int, lengths: Tensor) -> Tensor:
    """Frequencies of texts that have reached `lengths` (int64 [B]) tokens, fp32 [B, width / 2]."""
    stretch = factor * lengths.clamp(min=trained).double() / trained - (factor - 1)  # (B,)
    base = (theta * stretch ** (width / (width - 2))).float()
    return 1.0 / base[:, None] ** _exponents(width).to(lengths.device)


def _exponents(width: int) -> Tensor:
    """2i / P, fp32 [width / 2]."""
    return torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width


class Rope:
    """Cosines and sines of a model's positions, computed once a device and extended when a longer text comes."""

    def __init__(self, config: ModelConfig) -> None:
        scaling = config.rope_scaling
        self.width, self.theta = config.rope_width, config.rope_theta
        self.frequencies = frequencies(self.width, self.theta, scaling)
        self.multiplier = scaling.rotation_multiplier if scaling else 1.0
        # Beyond this length the frequencies depend on the length reached, by this factor.
        self.trained = config.max_position_embeddings
        self.factor = scaling.factor if scaling and scaling.type == "dynamic" else 1.0
        self._table: dict[torch.device, Rotation] = {}

    def __call__(self, start: int | Tensor, length: int, device: torch.device) -> Rotation:
        """Rotation of positions start .. start + length - 1; `start` is an int or int64 [B]."""
        end = length + (start if isinstance(start, int) else int(start.max()))
        if not self.reaches(end):
            return self._stretched(start, length, device)
        cos, sin = self._until(end, device)
        if isinstance(start, int):
            return cos[start:end], sin[start:end]  # (T, P/2)
        positions = start[:, None] + torch.arange(length, device=device)  # (B, T)
        return cos[positions], sin[positions]

    def reaches(self, length: int) -> bool:
        """Whether texts of this length are turned by the same frequencies as all shorter ones."""
        return self.factor == 1 or length <= self.trained

    def _stretched(self, start: int | Tensor, length: int, device: torch.device) -> Rotation:
        """The rotation where some row has outgrown the trained length: each row has frequencies of its own."""
        starts = torch.tensor([start]) if isinstance(start, int) else start.cpu()
        f = dynamic_frequencies(self.width, self.theta, self.factor, self.trained, starts + length)  # (B, P/2)
        positions = (starts[:, None] + torch.arange(length)).float()  # (B, T)
        angle = positions[..., None] * f[:, None]  # (B, T, P/2)
        cos, sin = angle.cos().to(device), angle.sin().to(device)
        return (cos[0], sin[0]) if isinstance(start, int) else (cos, sin)

    def _until(self, end: int, device: torch.device) -> Rotation:
        known = self._table.get(device)
        if known is None or known[0].shape[0] < end:
            size = max(256, 1 << (end - 1).bit_length())
            # The table outlives this call: one made while generating must serve training, which cannot differentiate
            # through tensors of inference mode.
            with torch.inference_mode(False):
                # The reference takes position * frequency in fp32; so do we, or long positions would differ.
                angle = torch.arange(size, dtype=torch.float32)[:, None] * self.frequencies.cpu()
                known = (angle.cos() * self.multiplier).to(device), (angle.sin() * self.multiplier).to(device)
            self._table[device] = known
        return known


def rope_of(config: ModelConfig) -> Rope | None:
    """The rope of a model; None where nothing is turned: MLA without position, or no attention at all."""
    still = config.mla_use_nope and config.kv_lora_rank is not None
    return None if still or all(map(config.is_kda, range(config.num_hidden_layers))) else Rope(config)
