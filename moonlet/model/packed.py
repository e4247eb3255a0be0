"""Routed experts whose weights stay packed: four or eight bits each in memory, looked up as they are multiplied.

| buffer | of `int4` | of `mxfp4` | of `fp8` |
|---|---|---|---|
| `gate_up_packed` [E, 2, I, .] | int32, D/8 | uint8, D/2 | float8, D |
| `gate_up_scale` [E, 2, I, .] | bf16, D/32 | uint8, D/32 | fp32 [E, 2, I/128, D/128] |
| `down_packed` [E, D, .] | int32, I/8 | uint8, I/2 | float8, I |
| `down_scale` [E, D, .] | bf16, I/32 | uint8, I/32 | fp32 [E, D/128, I/128] |

all rounded up. Each expert's part is, byte for byte, what a published file holds, so that reading one is copying:
`hub/packed.py` has the names. They are buffers without a gradient; casting a model leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from moonlet.config import ModelConfig
from moonlet.model.model import CausalLM
from moonlet.model.moe import Experts, MoE
from moonlet.ops.low_bit import low_bit_experts
from moonlet.ops.low_bit_codes import CODES, SCALES, SCHEMES, Packed, Scheme, packed_shapes, quantize

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class PackedExperts(nn.Module):
    """What `Experts` computes, from packed weights; uninitialised, on the device of the moment."""

    gate_up_packed: Tensor
    gate_up_scale: Tensor
    down_packed: Tensor
    down_scale: Tensor

    def __init__(self, config: ModelConfig, scheme: Scheme) -> None:
        super().__init__()
        assert scheme in SCHEMES, scheme
        self.scheme: Scheme = scheme
        self.width, self.inner = config.hidden_size, config.moe_intermediate_size
        for name, stack, out, width in (
            ("gate_up", (config.n_routed_experts, 2), self.inner, self.width),
            ("down", (config.n_routed_experts,), self.width, self.inner),
        ):
            codes, scale = packed_shapes(scheme, out, width)
            self.register_buffer(f"{name}_packed", torch.empty(*stack, *codes, dtype=CODES[scheme]))
            self.register_buffer(f"{name}_scale", torch.empty(*stack, *scale, dtype=SCALES[scheme]))

    @property
    def gate_up(self) -> Packed:
        """Of shape [E, 2, I, D], gate first."""
        return Packed(self.scheme, self.gate_up_packed, self.gate_up_scale, self.width)

    @property
    def down(self) -> Packed:
        """Of shape [E, D, I]."""
        return Packed(self.scheme, self.down_packed, self.down_scale, self.inner)

    def forward(self, x: Tensor, index: Tensor, weight: Tensor, plus: Tensor | None = None) -> Tensor:
        """x [N, D], index int64 [N, A], weight fp32 [N, A], plus [N, D] to be added or None -> [N, D]

        Its backward raises ValueError: packed weights cannot be trained.
        """
        return low_bit_experts(x, self.gate_up, self.down, index, weight, plus)

    @torch.no_grad()
    def pack(self, experts: Experts) -> None:
        """Take over the weights of `experts`, one expert at a time, so that little memory is needed beside them.

        Raises:
            ValueError: weights that are not finite.
        """
        I = self.inner
        for e in range(len(self.down_packed)):
            gate_up = quantize(experts.gate_up_proj[e].view(2, I, -1), self.scheme)
            down = quantize(experts.down_proj[e], self.scheme)
            self.gate_up_packed[e], self.gate_up_scale[e] = gate_up.codes, gate_up.scale
            self.down_packed[e], self.down_scale[e] = down.codes, down.scale

    @torch.no_grad()
    def unpack(self, experts: Experts) -> None:
        """Fill `experts` with what these codes stand for."""
        for e in range(len(self.down_packed)):
            dtype = experts.down_proj.dtype
            experts.gate_up_proj[e] = self.gate_up[e].dequantize(dtype).flatten(0, 1)
            experts.down_proj[e] = self.down[e].dequantize(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedExperts:
        """What `to`, `float`, `to_empty` and their like do to every tensor: here to its bits, which have no precision
        to be converted to."""

        def to_bits(x: Tensor) -> Tensor:
            return fn(x.view(_BITS[x.element_size()])).view(x.dtype)

        super()._apply(to_bits, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"{len(self.down_packed)} experts, {self.width} -> {self.inner} -> {self.width}, {self.scheme}"


def pack_experts(model: CausalLM, scheme: Scheme = "int4") -> CausalLM:
    """Put packed experts in the place of all others, in place, and return the model.

    Weights are quantised layer by layer, each layer's freed before the next is begun; of a model on the meta device
    there are only shapes, to be filled after `to_empty`.

    Raises:
        ValueError: an unknown scheme, or weights that are not finite.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"no scheme {scheme!r} for packed experts; valid: {', '.join(SCHEMES)}")
    for moe, experts in _mixtures(model):
        if isinstance(experts, Experts):
            with experts.down_proj.device:
                packed = PackedExperts(model.config, scheme)
            if not packed.down_packed.is_meta:
                packed.pack(experts)
            moe.experts = packed.train(moe.training)  # type: ignore[assignment]
            del experts  # the weights go before the next layer's codes come
    return model


def unpack_experts(model: CausalLM) -> CausalLM:
    """The reverse, in place: experts with weights in the head's dtype, which can be trained."""
    for moe, packed in _mixtures(model):
        if isinstance(packed, PackedExperts):
            with torch.device("meta"):
                experts = Experts(model.config).to(model.lm_head.weight.dtype)
            if not packed.down_packed.is_meta:
                packed.unpack(experts.to_empty(device=packed.down_packed.device))
            moe.experts = experts.train(moe.training)
    return model


def packed_scheme(model: CausalLM) -> Scheme | None:
    """How the model's experts are packed; None: they are not."""
    return next((e.scheme for _, e in _mixtures(model) if isinstance(e, PackedExperts)), None)


def _mixtures(model: CausalLM) -> Iterator[tuple[MoE, nn.Module]]:
    """Each mixture and its experts."""
    for moe in [module for module in model.modules() if isinstance(module, MoE)]:
        yield moe, moe.experts
