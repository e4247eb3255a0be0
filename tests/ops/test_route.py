"""Every implementation of the choice of experts equals the law in choice, weight, count and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moonlet.ops.dispatch import implementation, names
from moonlet.ops.native.build import library
from moonlet.ops.route import Rule, reference, route

OTHERS = sorted(set(names("route")) - {"reference"} - (set() if library("route") else {"native"}))
RULES = {
    "sigmoid": Rule(3, scale=2.5),
    "one": Rule(1),
    "all": Rule(12, scale=0.5),
    "bare": Rule(2, normalise=False, scale=2.0),
    "softmax": Rule(3, softmax=True, scale=1.5),
    "bare softmax": Rule(4, softmax=True, normalise=False),
    "groups": Rule(4, groups=4, top_groups=2),
}
E, D = 12, 40


def draw(N: int, seed: int = 0, experts: int = E) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, matrix = torch.randn(N, D, generator=g), torch.randn(experts, D, generator=g) / 4
    return x, matrix, torch.randn(experts, generator=g)


@pytest.mark.parametrize("N", [1, 63, 257])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", OTHERS)
def test_equals_the_law_in_choice_weight_count_and_gradient(name: str, rule: Rule, N: int) -> None:
    x, matrix, bias = draw(N)
    results = []
    for which in (name, "reference"):
        leaves = x.clone().requires_grad_(), matrix.clone().requires_grad_()
        load = torch.ones(E, dtype=torch.int64)
        index, weight = implementation("route", which)(*leaves, bias, rule, load)
        (weight * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        results.append((index, load, weight, *(leaf.grad for leaf in leaves)))
    ours, law = results
    assert torch.equal(ours[0], law[0])
    assert torch.equal(ours[1], law[1])
    for a, b in zip(ours[2:], law[2:], strict=True):
        assert (a - b).abs().max() <= 5e-6 * max(1.0, b.abs().max())


@pytest.mark.parametrize("name", OTHERS)
def test_of_equal_experts_and_groups_the_lower_index_wins(name: str) -> None:
    x, bias = torch.ones(3, D), torch.tensor([0.0, 0.5, 0.0, 0.5, 0.5, -0.0, 0.25, 0.5])
    matrix = torch.zeros(8, D)
    for rule in (Rule(6), Rule(3, groups=4, top_groups=2), Rule(8, softmax=True)):
        expected, _ = reference(x, matrix, bias, rule)
        assert implementation("route", name)(x, matrix, bias, rule)[0].tolist() == expected.tolist()
    assert expected[0].tolist() == [1, 3, 4, 7, 6, 0, 2, 5]


@pytest.mark.parametrize("name", OTHERS)
def test_rows_of_a_larger_tensor_and_bf16(name: str) -> None:
    wide, matrix, bias = draw(2 * 33)
    x = wide[::2]
    assert torch.equal(*(implementation("route", name)(rows, matrix, bias, Rule(3))[1] for rows in (x, x.contiguous())))
    half = x.bfloat16().requires_grad_()
    index, weight = implementation("route", name)(half, matrix, bias, Rule(3))
    weight.square().sum().backward()
    full = half.detach().float().requires_grad_()
    law, expected = reference(full, matrix, bias, Rule(3))
    expected.square().sum().backward()
    assert torch.equal(index, law)
    torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)
    assert half.grad is not None
    assert full.grad is not None
    torch.testing.assert_close(half.grad, full.grad.bfloat16(), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_finite_still_names_experts_that_exist(name: str) -> None:
    x, matrix, bias = draw(4)
    x[0, 0], x[1, 1] = float("nan"), float("inf")
    index, _ = implementation("route", name)(x, matrix, bias, Rule(3))
    assert all(len(set(row)) == 3 and 0 <= min(row) <= max(row) < E for row in index.tolist())


@pytest.mark.parametrize("scale", [1e4, 1e-30])
def test_extreme_scores_have_finite_weights_and_gradients(scale: float) -> None:
    x, matrix, bias = draw(20)
    x = (x * scale).requires_grad_()
    _, weight = route(x, matrix, 0 * bias, Rule(3))
    weight.sum().backward()
    assert weight.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_twice_the_same_bits() -> None:
    x, matrix, bias = draw(500)
    grads = []
    for _ in range(2):
        leaf = matrix.clone().requires_grad_()
        route(x, leaf, bias, Rule(3))[1].square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)  # type: ignore[arg-type]
