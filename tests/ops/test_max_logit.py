"""The largest logit: blocks give what the plain [T, T] computation gives, and the bound is never below it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moonlet.ops import max_logit as op
from moonlet.ops.dispatch import force, names
from moonlet.ops.max_logit import logit_bound, max_logit, reference

B, H = 2, 4


def draw(T: int, S: int, groups: int = H, K: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Queries and keys where every head and row has another largest logit."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.rand(B, H, 1, 1, generator=g) + 0.5
    return torch.randn(B, H, T, K, generator=g) * sizes, torch.randn(B, groups, S, K, generator=g)


def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 queries and 24 keys, so that small inputs have many, and cut ones at both ends."""
    monkeypatch.setitem(op.HELD, "cpu", 1)
    monkeypatch.setitem(op.KEYS, "cpu", 24)


def test_the_law_is_the_definition() -> None:
    q, k = draw(5, 9, groups=2)
    start = torch.tensor([4, 1])
    expected = [
        max(
            0.3 * float(q[b, h, t] @ k[b, h // 2, s])
            for b in range(B)
            for t in range(5)
            for s in range(int(start[b]) + t + 1)
        )
        for h in range(H)
    ]
    assert reference(q, k, 0.3, start).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("T", [1, 63, 100])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("what", ["plain", "documents", "start", "starts"])
def test_blocks_equal_the_law_at_odd_lengths(monkeypatch: pytest.MonkeyPatch, T: int, groups: int, what: str) -> None:
    start: int | Tensor = {"start": 37, "starts": torch.tensor([37, 5])}.get(what, 0)
    q, k = draw(T, T if what in ("plain", "documents") else T + 40, groups)
    documents = None
    if what == "documents":
        documents = torch.sort(torch.randint(0, 4, (B, T), generator=torch.Generator().manual_seed(2))).values
    law = reference(q, k, 0.3, start, documents)
    arguments = {"scale": 0.3, "start": start, "documents": documents}
    torch.testing.assert_close(max_logit(q, k, **arguments), law, rtol=1e-6, atol=0)  # type: ignore[arg-type]
    few_at_a_time(monkeypatch)
    torch.testing.assert_close(max_logit(q, k, **arguments), law, rtol=1e-6, atol=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("documents", [False, True])
def test_a_larger_logit_that_nobody_sees_does_not_count(monkeypatch: pytest.MonkeyPatch, documents: bool) -> None:
    few_at_a_time(monkeypatch)
    q, k = torch.ones(1, 1, 100, 4), torch.ones(1, 1, 100, 4)
    k[0, 0, 60] = 50.0  # seen by queries 60 .. 99
    which = torch.arange(100)[None] // 61 if documents else None
    q[0, 0, 60 : 61 if documents else 100] = 0.5
    q[0, 0, :60] = 3.0  # before it
    if documents:
        q[0, 0, 61:] = 9.0  # in another document
    assert max_logit(q, k, scale=1.0, documents=which).item() == pytest.approx(100.0)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_only_the_heads_asked_for_are_looked_at(groups: int) -> None:
    q, k = draw(63, 63, groups)
    law = reference(q, k, 0.3, 0)
    q[:, 2] = math.nan  # whoever looked here would say so
    for heads in ([3], [0, 3], [1], []):
        found = max_logit(q, k, scale=0.3, heads=torch.tensor(heads, dtype=torch.int64))
        torch.testing.assert_close(found[heads], law[heads], rtol=1e-6, atol=0)
        assert all(found[h] == -math.inf for h in range(H) if h not in heads)


@pytest.mark.parametrize("name", sorted(names("max_logit")))
def test_unseen_keys_may_hold_anything(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    few_at_a_time(monkeypatch)
    q, k = draw(30, 90)
    start = torch.tensor([11, 40])
    expected = reference(q, k, 0.3, start)
    for b in range(B):
        k[b, :, int(start[b]) + 30 :] = math.nan
    with force("max_logit", name):
        torch.testing.assert_close(max_logit(q, k, scale=0.3, start=start), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e3, 1e15])
def test_extreme_inputs_equal_the_law(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    few_at_a_time(monkeypatch)
    q, k = draw(63, 63)
    q[0, 1], k[0, 1] = -q[0, 1].abs(), k[0, 1].abs()  # a row whose every logit is negative
    q[1, 1], k[1, 1] = -q[1, 1].abs() * 2, k[1, 1].abs()
    law = reference(q * size, k, 0.3, 0)
    assert law.isfinite().all()
    assert law[1] < 0
    torch.testing.assert_close(max_logit(q * size, k, scale=0.3), law, rtol=1e-6, atol=0)


def test_nan_is_found_and_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    few_at_a_time(monkeypatch)
    q, k = draw(63, 63)
    q[1, 2, 5] = math.nan
    assert max_logit(q, k, scale=0.3).isnan().tolist() == [False, False, True, False]
    assert logit_bound(q, k, 0.3).isnan().tolist() == [False, False, True, False]


def test_half_precision_is_multiplied_and_summed_in_fp32() -> None:
    q, k = (x.bfloat16() for x in draw(63, 63))
    logits = (q.double() @ k.double().transpose(-1, -2) * 0.3).masked_fill(~torch.ones(63, 63).tril().bool(), -math.inf)
    found = max_logit(q, k, scale=0.3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, logits.amax((0, 2, 3)).float(), rtol=1e-6, atol=0)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 40), st.sampled_from([1, 2, 8, 48, 192, 257]), st.sampled_from([1, 2, 4])),
    exponents=st.tuples(st.integers(-38, 18), st.integers(-38, 18)),
    scale=st.sampled_from([1.0, 0.0721688, 0.1446801]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    alike=st.sampled_from(["not at all", "parallel", "the same"]),
)
def test_the_bound_is_never_below_the_exact_maximum(
    seed: int,
    shape: tuple[int, int, int],
    exponents: tuple[int, int],
    scale: float,
    dtype: torch.dtype,
    alike: str,
) -> None:
    T, K, groups = shape
    q, k = draw(T, T, groups, K, seed)
    if alike == "parallel":  # where Cauchy and Schwarz's is an equality, rounding decides
        k = q.view(B, groups, H // groups, T, K)[:, :, 0] * 0.37
    elif alike == "the same":
        q = k = torch.full((B, H, T, K), 0.7) * (1 + torch.rand(1, generator=torch.Generator().manual_seed(seed)))
    q, k = (q * 10.0 ** exponents[0]).to(dtype), (k * 10.0 ** exponents[1]).to(dtype)
    bound, exact = logit_bound(q, k, scale), reference(q, k, scale, 0)
    assert bound.shape == (H,)
    assert (bound >= exact).all()
    assert (bound >= max_logit(q, k, scale=scale)).all()


def test_the_bound_is_met_where_a_query_and_its_key_are_parallel() -> None:
    q, k = draw(1, 1, K=192)
    k = q * 3
    bound, exact = logit_bound(q, k, 0.3), max_logit(q, k, scale=0.3)
    torch.testing.assert_close(bound, exact, rtol=5e-5, atol=0)


def test_nothing_as_large_as_all_logits_is_held() -> None:
    T = 4096
    q, k = torch.zeros(1, 2, T, 4), torch.zeros(1, 2, T, 4)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        max_logit(q, k, scale=1.0)
    assert 0 < largest <= op.HELD["cpu"] < 2 * T * T
