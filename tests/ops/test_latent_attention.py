"""MLA's fused attention equals turning, joining and attending apart: value, gradients and largest logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moonlet.ops.dispatch import force, implementation
from moonlet.ops.latent_attention import fits
from moonlet.ops.native import library
from moonlet.ops.rope import Rotation

pytestmark = pytest.mark.skipif(library("attention") is None, reason="no C++ compiler here")
B, H, K, V = 2, 3, 20, 12


def draw(T: int, P: int, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Rotation]:
    g = torch.Generator().manual_seed(T)
    q, kv = torch.randn(B, T, H, K + P, generator=g), torch.randn(B, T, H, K + V, generator=g)
    # The shared key is the end of a wider matrix, as the projection leaves it.
    a = torch.randn(B, T, 9 + P, generator=g)
    angle = torch.rand(T, P // 2, generator=g) * 6
    return [x.to(dtype) for x in (q, kv, a)], (angle.cos(), angle.sin())


def results(
    name: str, inputs: list[Tensor], rotation: Rotation | None, documents: Tensor | None = None
) -> tuple[Tensor, ...]:
    P = inputs[2].shape[-1] - 9
    leaves = [x.clone().requires_grad_() for x in inputs]
    largest = torch.full((H,), -torch.inf)
    out = implementation("latent_attention", name)(
        leaves[0], leaves[1], leaves[2][..., 9:], V, rotation, 0.2, documents, largest
    )
    assert out.shape == (*inputs[0].shape[:3], V)
    d = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    assert P >= 0
    return (out.detach(), largest, *torch.autograd.grad(out, leaves, d))


@pytest.mark.parametrize("T", [1, 2, 63, 100, 257])
@pytest.mark.parametrize("P", [2, 8, 16, 24])
@pytest.mark.parametrize("turns", [True, False])
def test_equals_the_law(T: int, P: int, turns: bool) -> None:
    inputs, rotation = draw(T, P)
    found, law = (results(name, inputs, rotation if turns else None) for name in ("native", "reference"))
    for a, b in zip(found, law, strict=True):
        assert (a - b).abs().max() <= 5e-6 * b.abs().max().clamp(min=1)


@pytest.mark.parametrize("lengths", [[1] * 70, [30, 1, 39], [70], [64, 6]])
def test_documents_and_a_rotation_of_each_row(lengths: list[int]) -> None:
    inputs, _ = draw(70, 16)
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(B, -1)
    angle = torch.rand(B, 70, 8) * 6
    found, law = (results(name, inputs, (angle.cos(), angle.sin()), documents) for name in ("native", "reference"))
    for a, b in zip(found, law, strict=True):
        assert (a - b).abs().max() <= 5e-6 * b.abs().max().clamp(min=1)


def test_bf16_is_nearer_to_fp32_than_the_law_in_bf16() -> None:
    inputs, rotation = draw(150, 16, torch.bfloat16)
    exact = results("reference", [x.float() for x in inputs], rotation)
    found, law = (results(name, inputs, rotation) for name in ("native", "reference"))
    for a, b, c in zip(found, law, exact, strict=True):
        assert (a - c).float().norm() <= 1.1 * (b - c).float().norm() + 1e-6 * c.norm()


def test_a_nan_shows_in_its_heads_largest_logit_alone() -> None:
    inputs, rotation = draw(40, 16)
    inputs[0][1, 7, 2, 3] = float("nan")
    assert results("native", inputs, rotation)[1].isnan().tolist() == [False, False, True]


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    inputs, rotation = draw(300, 16, torch.bfloat16)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(results("native", inputs, rotation))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_whoever_forces_an_attention_gets_it() -> None:
    (q, kv, a), _ = draw(10, 16)
    assert fits(q, kv, a[..., 9:], V, None)
    with force("attention", "reference"):
        assert not fits(q, kv, a[..., 9:], V, None)
    assert not fits(q.double(), kv.double(), a[..., 9:].double(), V, None)
