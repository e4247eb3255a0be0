"""The delta rule in chunks equals the recurrence, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.ops.delta import reference
from moonlet.ops.delta_chunked import chunked

B, H, K, V = 2, 3, 24, 16


def draw(T: int, decay: float, documents: bool) -> tuple[list[Tensor], Tensor | None]:
    gen = torch.Generator().manual_seed(T)
    q, k, v, state = (torch.randn(s, generator=gen) for s in ((B, T, H, K), (B, T, H, K), (B, T, H, V), (B, H, K, V)))
    g, beta = -decay / 8 * torch.rand(B, T, H, K, generator=gen), torch.rand(B, T, H, generator=gen)
    places = torch.randint(0, 2, (B, T), generator=gen) if documents else None
    return [F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, g, beta, state], places


@pytest.mark.parametrize("decay", [0.0, 5.0, 80.0, 1e4], ids="e^-{} a tile".format)
@pytest.mark.parametrize("chunk", [16, 32, 64])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("T", [1, 17, 63, 64, 100])
def test_chunked_equals_the_recurrence(T: int, documents: bool, chunk: int, decay: float) -> None:
    inputs, places = draw(T, decay, documents)
    results = []
    for rule in (reference, lambda *a: chunked(*a, chunk=chunk)):
        dtype = torch.float64 if rule is reference else torch.float32
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        o, state = rule(*leaves[:5], 0.3, leaves[5], places)
        weights = torch.linspace(-1, 2, o.numel()).view(o.shape), torch.linspace(2, -1, state.numel()).view(state.shape)
        loss = (o * weights[0]).sum() + (state * weights[1]).sum()
        results.append([o, state, *torch.autograd.grad(loss, leaves)])
    for name, law, ours in zip(("o", "state", "q", "k", "v", "g", "beta", "state"), *results, strict=True):
        assert (ours - law).abs().max() <= 1e-5 * law.abs().max() + 1e-12, name
