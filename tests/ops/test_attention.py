"""Every implementation of attention equals the law, in value and gradient, and the law equals a loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moonlet.ops.attention import attention, reference
from moonlet.ops.dispatch import force, implementation, names
from moonlet.ops.native import library

LENGTHS = [1, 63, 100, 257]
# flash has tests of its own; whoever looks on while a model runs is no implementation.
OTHERS = sorted(
    set(names("attention"))
    - {"reference", "flash", "watched"}
    - ({"native"} if library("attention") is None else set())
)
B, H = 2, 4
GROUPS = [1, 2, 4]  # heads of keys


def draw(T: int, S: int, K: int = 20, V: int = 12, key_heads: int = H, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(B, H, T, K, generator=g), torch.randn(B, key_heads, S, K, generator=g)
    return q, k, torch.randn(B, key_heads, S, V, generator=g)


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value, but never over less than one, the size of the terms that are summed:
    where the softmax is certain, the gradients of q and k are zero but for rounding."""
    return ((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1.0)).item()


def compare(
    name: str,
    inputs: tuple[Tensor, ...],
    scale: float,
    start: int | Tensor,
    of_gradients: float = 5e-6,
    documents: Tensor | None = None,
) -> None:
    """Value and the three gradients of implementation `name` against the law."""
    results = []
    for which in (name, "reference"):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = implementation("attention", which)(*leaves, scale, start, documents)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        (out.float() * weights).sum().backward()
        results.append([out, *(x.grad for x in leaves)])
    for part, a, b in zip(("value", "q", "k", "v"), *results, strict=True):
        assert a.shape == b.shape
        assert a.isfinite().all(), part
        assert relative(a, b) <= (5e-6 if part == "value" else of_gradients), part


@pytest.mark.parametrize("groups", GROUPS)
def test_the_law_is_the_definition(groups: int) -> None:
    (q, k, v), scale, start = draw(5, 9, key_heads=groups), 0.3, torch.tensor([4, 1])
    out = reference(q, k, v, scale, start)
    for b in range(B):
        for h in range(H):
            for t in range(5):
                seen = int(start[b]) + t + 1
                g = h // (H // groups)
                p = [math.exp(scale * float(q[b, h, t] @ k[b, g, s])) for s in range(seen)]
                expected = sum(x / sum(p) * v[b, g, s] for s, x in enumerate(p))
                torch.testing.assert_close(out[b, h, t], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(("K", "V", "groups"), [(20, 12, 4), (8, 24, 1), (16, 16, 2), (20, 12, 2)])
def test_equals_the_law_at_odd_lengths(name: str, T: int, K: int, V: int, groups: int) -> None:
    compare(name, draw(T, T, K, V, key_heads=groups), K**-0.5, 0)


@pytest.mark.parametrize("T", [1, 2, 63])
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("start", [37, torch.tensor([37, 5]), torch.tensor([0, 37])], ids=["int", "rows", "empty-row"])
@pytest.mark.parametrize("groups", GROUPS)
def test_equals_the_law_behind_a_cache(name: str, T: int, start: int | Tensor, groups: int) -> None:
    compare(name, draw(T, 37 + T, key_heads=groups), 0.2, start)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("name", [*OTHERS, "reference"])
@pytest.mark.parametrize("groups", [1, 2])
def test_shared_keys_are_those_keys_written_out(name: str, T: int, groups: int) -> None:
    if T <= 100:
        compare(name, draw(T, T + 6, key_heads=groups), 0.2, 6)
    q, k, v = draw(T, T + 6, key_heads=groups)
    # Query heads 0 and 1 share a key head where there are two, not 0 and 2.
    many = reference(q, *(x.repeat_interleave(H // groups, 1) for x in (k, v)), 0.2, 6)
    assert relative(implementation("attention", name)(q, k, v, 0.2, 6), many) <= 5e-6


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("T", [1, 63, 100])
def test_documents_are_masked_in_value_and_gradient(name: str, groups: int, T: int) -> None:
    documents = torch.sort(torch.randint(0, 4, (B, T), generator=torch.Generator().manual_seed(2))).values
    compare(name, draw(T, T, key_heads=groups), 0.3, 0, documents=documents)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("start", [0, 9])
@pytest.mark.parametrize("heads", [2, 4])
def test_huge_logits_give_the_same_and_nothing_infinite(name: str, start: int, heads: int) -> None:
    # Whole numbers, so that logits of up to 1e4 are exact in fp32 and differences are the implementation's own.
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randint(-45, 46, (B, n, s, 20), generator=g).float() for n, s in ((H, 40), (heads, 40 + start)))
    v = torch.randn(B, heads, 40 + start, 12, generator=g)
    assert (q @ k.repeat_interleave(H // heads, 1).transpose(-1, -2)).abs().max() > 9e3
    # A backward that starts from a stored log-sum-exp knows it to 1e-3 only, at 1e4.
    compare(name, (q, k, v), 1.0, start, of_gradients=5e-3)


@pytest.mark.parametrize("name", [*OTHERS, "reference"])
@pytest.mark.parametrize("T", [1, 3, 100])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_unseen_keys_may_hold_anything(name: str, T: int, rows: bool, groups: int) -> None:
    S = T + 50
    start: int | Tensor = torch.tensor([11, 30]) if rows else 11
    q, k, v = draw(T, S, key_heads=groups)
    expected = reference(q, k, v, 0.2, start)
    poisoned_k, poisoned_v = k.clone(), v.clone()
    for b in range(B):
        seen = (int(start[b]) if isinstance(start, Tensor) else start) + T
        poisoned_k[b, :, seen:], poisoned_v[b, :, seen:] = float("nan"), float("nan")
    out = implementation("attention", name)(q, poisoned_k, poisoned_v, 0.2, start)
    assert not out.isnan().any()
    assert relative(out, expected) <= 5e-6


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("T", [1, 63, 257])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_bf16_stays_near_the_law_in_fp32(name: str, T: int, groups: int) -> None:
    q, k, v = (x.bfloat16() for x in draw(T, T + 4, key_heads=groups))
    out = implementation("attention", name)(q, k, v, 0.2, 4)
    assert out.dtype == torch.bfloat16
    assert relative(out, reference(q.float(), k.float(), v.float(), 0.2, 4)) <= 2e-2


@pytest.mark.parametrize(
    "shape", ["training", "decode", "long", "latents", "grouped", "grouped decode", "grouped long"]
)
def test_whatever_is_chosen_equals_the_law(shape: str) -> None:
    q, k, v = {
        "training": lambda: draw(64, 64),
        "decode": lambda: draw(1, 90),
        "long": lambda: draw(300, 300),
        "latents": lambda: draw(2, 90, key_heads=1),
        "grouped": lambda: draw(64, 64, 16, 16, key_heads=2),
        "grouped decode": lambda: draw(1, 90, 16, 16, key_heads=2),
        "grouped long": lambda: draw(300, 300, 16, 16, key_heads=2),
    }[shape]()
    start = k.shape[2] - q.shape[2]
    chosen = attention(q, k, v, scale=0.2, start=start)
    with force("attention", "reference"):
        assert relative(chosen, attention(q, k, v, scale=0.2, start=start)) <= 5e-6


@pytest.mark.parametrize("name", [*sorted(set(OTHERS) - {"native"}), "reference"])  # it knows no fp64
def test_the_gradient_is_that_of_the_value(name: str) -> None:
    # The law's own gradient, by finite differences in fp64 (its softmax in fp32 limits the step).
    f: Callable[..., Tensor] = implementation("attention", name)
    q, k, v = (x.double() for x in draw(3, 5))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    f(*leaves, 0.5, 2).sum().backward()
    for i, leaf in enumerate(leaves):
        direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        ends = []
        for step in (1e-2, -1e-2):
            moved = [x + step * direction if j == i else x for j, x in enumerate((q, k, v))]
            ends.append(f(*moved, 0.5, 2).sum())
        assert leaf.grad is not None
        slope = (leaf.grad * direction).sum().item()
        assert slope == pytest.approx(((ends[0] - ends[1]) / 2e-2).item(), rel=2e-3, abs=2e-4)
