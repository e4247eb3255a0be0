"""Every implementation of the routed experts equals the law, however tokens spread over experts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.ops import experts_native
from moonlet.ops.dispatch import force, implementation, names
from moonlet.ops.experts import experts, reference
from moonlet.ops.experts_grouped import _grouped_mm
from moonlet.ops.native.build import library

WITHOUT_GRADIENT = {"few"}
MISSING = (set() if library("experts") else {"native"}) | (set() if _grouped_mm else {"grouped_mm"})
OTHERS = sorted(set(names("experts")) - {"reference"} - MISSING)
WITH_GRADIENT = sorted(set(OTHERS) - WITHOUT_GRADIENT)
D, I, E = 24, 16, 8


def draw(N: int, A: int = 3, seed: int = 0, spread: str = "random") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    index = torch.rand(N, E, generator=g).topk(A).indices
    if spread == "all to one":
        index = torch.arange(A).expand(N, A).contiguous()  # experts 0 .. A-1 get every token, the others none
    if spread == "one token each":
        index = (torch.arange(N)[:, None] * A + torch.arange(A)) % E
    x = torch.randn(N, D, generator=g)
    gate_up, down = torch.randn(E, 2 * I, D, generator=g) / 4, torch.randn(E, D, I, generator=g) / 4
    return x, gate_up, down, index, torch.rand(N, A, generator=g)


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-30)).item()


def compare(name: str, inputs: tuple[Tensor, ...], tolerance: float = 5e-6) -> None:
    """Value and gradients of x, both weights and the mixing weight against the law."""
    x, gate_up, down, index, weight = inputs
    results = []
    for which in (name, "reference"):
        leaves = [t.clone().requires_grad_() for t in (x, gate_up, down, weight)]
        y = implementation("experts", which)(*leaves[:3], index, leaves[3])
        (y.float() * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        results.append([y, *(t.grad for t in leaves)])
    for part, a, b in zip(("value", "x", "gate_up", "down", "weight"), *results, strict=True):
        assert a.dtype == b.dtype, part
        assert relative(a, b) <= tolerance, part


def test_the_law_is_the_definition() -> None:
    x, gate_up, down, index, weight = draw(5)
    y = reference(x, gate_up, down, index, weight)
    for n in range(5):
        expected = torch.zeros(D)
        for e, w in zip(index[n].tolist(), weight[n].tolist(), strict=True):
            gate, up = gate_up[e, :I] @ x[n], gate_up[e, I:] @ x[n]
            expected += w * (down[e] @ (F.silu(gate) * up))
        torch.testing.assert_close(y[n], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("N", [1, 63, 100, 257])
@pytest.mark.parametrize("A", [1, 3, E])
@pytest.mark.parametrize("name", OTHERS)
def test_value_equals_the_law(name: str, N: int, A: int) -> None:
    inputs = draw(N, A)
    with torch.no_grad():
        assert relative(implementation("experts", name)(*inputs), reference(*inputs)) <= 5e-6


@pytest.mark.parametrize("N", [1, 63, 100, 257, 1100])
@pytest.mark.parametrize("A", [1, 3, E])
@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_gradients_equal_the_law(name: str, N: int, A: int) -> None:
    compare(name, draw(N, A))


@pytest.mark.parametrize("spread", ["all to one", "one token each"])
@pytest.mark.parametrize("A", [1, 2])
@pytest.mark.parametrize("name", OTHERS)
def test_experts_with_everything_and_experts_with_nothing(name: str, A: int, spread: str) -> None:
    inputs = draw(37, A, spread=spread)
    if name in WITH_GRADIENT:
        compare(name, inputs)
    with torch.no_grad():
        assert relative(implementation("experts", name)(*inputs), reference(*inputs)) <= 5e-6


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_an_expert_without_tokens_gets_a_zero_gradient(name: str) -> None:
    x, gate_up, down, index, weight = draw(37, 1, spread="all to one")
    gate_up.requires_grad_()
    down.requires_grad_()
    implementation("experts", name)(x, gate_up, down, index, weight).sum().backward()
    for grad in (gate_up.grad, down.grad):
        assert grad is not None
        assert (grad[1:] == 0).all()
        assert grad[0].abs().max() > 0


@pytest.mark.parametrize("name", OTHERS)
def test_huge_and_tiny_inputs(name: str) -> None:
    x, gate_up, down, index, weight = draw(63)
    x[::2] *= 1e4
    x[1::4] *= 1e-4
    weight[::3] = 0.0
    inputs = (x, gate_up, down, index, weight)
    with torch.no_grad():
        y, law = implementation("experts", name)(*inputs), reference(*inputs)
    assert y.isfinite().all()
    for n in range(63):
        assert relative(y[n], law[n]) <= 1e-5  # row by row: a small token is not drowned by a large one
    if name in WITH_GRADIENT:
        compare(name, inputs, tolerance=1e-5)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("N", [1, 63])
def test_bf16_stays_near_the_law_in_fp32(name: str, N: int) -> None:
    x, gate_up, down, index, weight = draw(N)
    x, gate_up, down = x.bfloat16(), gate_up.bfloat16(), down.bfloat16()
    with torch.no_grad():
        y = implementation("experts", name)(x, gate_up, down, index, weight)
        assert y.dtype == torch.bfloat16
        assert relative(y, reference(x.float(), gate_up.float(), down.float(), index, weight)) <= 3e-2
    if name in WITH_GRADIENT:
        compare(name, (x, gate_up, down, index, weight), tolerance=4e-2)


@pytest.mark.parametrize("N", [1, 8, 100])
@pytest.mark.parametrize("grad", [False, True])
def test_whatever_is_chosen_equals_the_law(N: int, grad: bool) -> None:
    x, *rest = draw(N)
    with torch.set_grad_enabled(grad):
        chosen = experts(x.requires_grad_(grad), *rest)
        with force("experts", "reference"):
            assert relative(chosen, experts(x, *rest)) <= 5e-6
    assert chosen.requires_grad == grad


def test_master_weights_in_fp32_are_cast_and_get_fp32_gradients() -> None:
    x, gate_up, down, index, weight = draw(40)
    gate_up.requires_grad_()
    y = experts(x.bfloat16(), gate_up, down, index, weight)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert gate_up.grad is not None
    assert gate_up.grad.dtype == torch.float32


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_a_tokens_result_does_not_depend_on_its_company(name: str) -> None:
    x, gate_up, down, index, weight = draw(100)
    f = implementation("experts", name)
    together = f(x, gate_up, down, index, weight)
    for n in (0, 57, 99):
        one = slice(n, n + 1)
        assert relative(together[one], f(x[one], gate_up, down, index[one], weight[one])) <= 5e-6


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_added_is_added_and_gets_the_whole_gradient(name: str) -> None:
    x, gate_up, down, index, weight = draw(37)
    f = implementation("experts", name)
    plus = torch.randn(37, D, generator=torch.Generator().manual_seed(2)).requires_grad_()
    y = f(x, gate_up, down, index, weight, plus)
    assert relative(y, f(x, gate_up, down, index, weight) + plus) <= 5e-6
    dy = torch.randn(37, D)
    y.backward(dy)
    assert torch.equal(plus.grad, dy)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (24, 300, 257)])
@pytest.mark.parametrize("name", sorted(set(WITH_GRADIENT) - {"grouped_mm"}))
def test_odd_widths_and_a_single_expert(name: str, shape: tuple[int, int, int]) -> None:
    N, width, inner = shape
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, width, generator=g)
    gate_up, down = torch.randn(1, 2 * inner, width, generator=g) / 8, torch.randn(1, width, inner, generator=g) / 8
    compare(name, (x, gate_up, down, torch.zeros(N, 1, dtype=torch.int64), torch.rand(N, 1, generator=g)), 1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_rows_of_larger_tensors(name: str) -> None:
    x, gate_up, down, index, weight = draw(80)
    parts = x[::2], gate_up, down, index[::2], weight[::2]
    assert not any(part.is_contiguous() for part in (parts[0], parts[3], parts[4]))
    together = tuple(part.contiguous() for part in parts)
    assert torch.equal(*(implementation("experts", name)(*inputs) for inputs in (parts, together)))


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_twice_the_same_bits(name: str) -> None:
    found = []
    for _ in range(2):
        x, gate_up, down, index, weight = draw(300)
        leaves = [t.requires_grad_() for t in (x, gate_up, down, weight)]
        y = implementation("experts", name)(*leaves[:3], index, leaves[3])
        y.square().sum().backward()
        found.append([y.detach(), *(t.grad for t in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_extreme_gates_have_finite_values_and_gradients(name: str) -> None:
    inputs = draw(20)
    inputs[1].mul_(3e3)  # gates of many thousands, either way
    compare(name, inputs, tolerance=2e-5)


@pytest.mark.skipif("native" in MISSING, reason="not compiled here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_over_many_rows_are_taken_in_turns(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts_native, "_ROWS_AT_ONCE", 32)
    x, gate_up, down, index, weight = draw(200, 2, spread="all to one")
    inputs = x.to(dtype), gate_up.to(dtype), down.to(dtype), index, weight
    compare("native", inputs, tolerance=5e-6 if dtype == torch.float32 else 4e-2)


@pytest.mark.skipif("native" in MISSING, reason="not compiled here")
def test_native_keeps_less_for_its_backward_than_its_twin() -> None:
    x, *rest = draw(1024)
    kept = {}
    for name in ("native", "sorted"):
        sizes: dict[int, int] = {}

        def note(t: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            implementation("experts", name)(x.requires_grad_(), *rest)
        kept[name] = sum(sizes.values())
    assert kept["native"] < kept["sorted"]
