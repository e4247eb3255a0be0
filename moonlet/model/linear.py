"""Linear maps without bias whose weight is cast to its input's dtype.

Master weights stay fp32 while activations flow in the compute dtype: the cast sits here, in the forward, and autograd
casts the gradient back on its way to the master.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """y = x W^T, with `weight` [out, in]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in x's dtype."""
        return F.linear(x, self.weight.to(x.dtype))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]}"


class TiedHead(nn.Module):
    """A head without a parameter of its own: y = x W^T with the embedding's W.

    One parameter, under the embedding's name alone, is what the file holds and the optimizer sees; and it stays one
    when the model is moved or cast, which two modules that share a parameter do not survive.
    """

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple, so that it is not registered a second time

    @property
    def weight(self) -> Tensor:
        """The embedding's, [vocabulary, D]."""
        weight = self._embedding[0].weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., vocabulary] in x's dtype."""
        return F.linear(x, self.weight.to(x.dtype))
