"""Attention by flash_attn: what is handed to it and what is made of its answer, with a stand-in that computes the law.

The stand-in reads the package's own layouts, [B, T, H, K] and, for packed documents, [tokens, H, K] with their borders.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from moonlet.ops import flash
from moonlet.ops.attention import attention, choose, reference
from moonlet.ops.dispatch import force
from moonlet.ops.flash import borders

B, H, T = 2, 4, 33


class Calls(ModuleType):
    """The stand-in."""

    def __init__(self) -> None:
        super().__init__("flash_attn")
        self.seen: list[str] = []

    def flash_attn_func(self, q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, causal: bool) -> Tensor:
        self.seen.append("func")
        assert causal
        assert q.shape[-1] == k.shape[-1] == v.shape[-1]  # as the package wants it
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return reference(q, k, v, softmax_scale, k.shape[2] - q.shape[2]).transpose(1, 2)

    def flash_attn_varlen_func(
        self, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, **settings: Any
    ) -> Tensor:
        self.seen.append("varlen")
        assert cu_q.dtype == cu_k.dtype == torch.int32
        assert torch.equal(cu_q, cu_k)
        ends = cu_q.tolist()
        assert max(b - a for a, b in itertools.pairwise(ends)) <= min(max_q, max_k)
        parts = [
            self.flash_attn_func(*(x[None, a:b] for x in (q, k, v)), **settings)[0] for a, b in itertools.pairwise(ends)
        ]
        return torch.cat(parts)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """The stand-in, installed."""
    module = Calls()
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    flash.package.cache_clear()
    yield module
    flash.package.cache_clear()


def draw(T: int, S: int, K: int, V: int, groups: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(T)
    shapes = ((B, H, T, K), (B, groups, S, K), (B, groups, S, V))
    return [torch.randn(shape, generator=g).requires_grad_() for shape in shapes]


def compare(inputs: list[Tensor], start: int, documents: Tensor | None = None) -> None:
    """Value and gradients of `flash` against the law."""
    results = []
    for name in ("flash", "reference"):
        with force("attention", name):
            out = attention(*inputs, scale=0.3, start=start, documents=documents)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        results.append([out, *torch.autograd.grad((out * weight).sum(), inputs)])
    for ours, law in zip(*results, strict=True):
        torch.testing.assert_close(ours, law, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("K", "V"), [(16, 16), (20, 12), (8, 24)])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 63, 100])
def test_equals_the_law(package: Calls, length: int, groups: int, K: int, V: int) -> None:
    compare(draw(length, length, K, V, groups), 0)
    compare(draw(length, length + 7, K, V, groups), 7)
    assert set(package.seen) == {"func"}


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_documents_are_sequences_of_their_own(package: Calls, groups: int) -> None:
    documents = torch.sort(torch.randint(0, 4, (B, T), generator=torch.Generator().manual_seed(3))).values
    compare(draw(T, T, 20, 12, groups), 0, documents)
    assert "varlen" in package.seen


def test_borders_end_documents_at_the_end_of_a_row() -> None:
    # The second row goes on with the number the first ended with, and is another document all the same.
    assert borders(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 2]])).tolist() == [0, 2, 4, 7, 8]


def on_gpu(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> Any:
    """As much of a tensor on a GPU as the choice looks at."""
    return SimpleNamespace(shape=shape, dtype=dtype, is_cuda=True)


@pytest.mark.parametrize(
    ("choice", "S", "V", "start", "dtype"),
    [
        ("flash", 64, 128, 0, torch.bfloat16),
        ("flash", 70, 192, 6, torch.float16),
        ("sdpa", 64, 128, 0, torch.float32),  # it knows no fp32
        ("sdpa", 70, 128, 0, torch.bfloat16),  # keys behind the last query
        ("sdpa", 70, 128, torch.tensor([6, 6]), torch.bfloat16),
        ("sdpa", 64, 512, 0, torch.bfloat16),  # too wide
    ],
)
def test_it_is_chosen_on_a_gpu_where_it_fits(
    package: Calls, choice: str, S: int, V: int, start: int | Tensor, dtype: torch.dtype
) -> None:
    q, k, v = on_gpu((B, H, 64, 192), dtype), on_gpu((B, 2, S, 192), dtype), on_gpu((B, 2, S, V), dtype)
    assert choose(q, k, v, start) == choice


@pytest.mark.parametrize("broken", [None, ModuleType("flash_attn")], ids=["missing", "of another version"])
def test_without_the_package_a_gpu_takes_sdpa(monkeypatch: pytest.MonkeyPatch, broken: ModuleType | None) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", broken)  # type: ignore[arg-type] # None: the import fails
    flash.package.cache_clear()
    try:
        q = on_gpu((B, H, 64, 64))
        assert choose(q, q, q, 0) == "sdpa"
        with force("attention", "flash"), pytest.raises(ValueError, match="pip install flash-attn"):
            attention(*draw(4, 4, 8, 8, 4), scale=0.3)
    finally:
        flash.package.cache_clear()


def test_its_presence_changes_nothing_on_a_cpu(package: Calls) -> None:
    for T in (1, 63, 300):
        for groups in (1, 2, 4):
            q, k, v = (x.bfloat16() for x in draw(T, T, 16, 16, groups))
            assert choose(q, k, v, 0) != "flash"
            attention(q, k, v, scale=0.3)
    assert not package.seen
