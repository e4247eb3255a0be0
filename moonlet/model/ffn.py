"""SwiGLU: down(silu(gate x) * up x) (arXiv 2002.05202)."""

from __future__ import annotations

from torch import Tensor, nn

from moonlet.model.linear import Linear
from moonlet.ops.region import region
from moonlet.ops.swiglu import swiglu


class SwiGLU(nn.Module):
    """The dense feed-forward layer, and the shared experts (as one of their joint width)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, inner)
        self.up_proj = Linear(width, inner)
        self.down_proj = Linear(inner, width)

    @region
    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]"""
        out: Tensor = self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
        return out
