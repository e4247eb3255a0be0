"""The chunked cross-entropy equals the plain one and never holds all logits in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moonlet.ops.dispatch import force
from moonlet.ops.loss import IGNORE, cross_entropy, token_losses
from moonlet.ops.native import library

D, V = 16, 37
FAST = ""


@pytest.fixture(params=[7, None], ids=["chunks of 7", "one chunk"], autouse=True)
def _rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr("moonlet.ops.loss._rows", lambda weight: request.param)


def draw(N: int, ignored: float = 0.3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(N)
    target = torch.randint(V, (N,), generator=g)
    target[torch.rand(N, generator=g) < ignored] = IGNORE
    return torch.randn(N, D, generator=g).to(dtype), torch.randn(V, D, generator=g), target


@pytest.fixture(params=["chunked", "native"], autouse=True)
def fast(request: pytest.FixtureRequest) -> str:
    """The implementation that is held against the law."""
    global FAST
    if request.param == "native" and library("loss") is None:
        pytest.skip("no C++ compiler here")
    FAST = request.param
    return FAST


def losses(hidden: Tensor, weight: Tensor, target: Tensor, factor: float = 3.0) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Loss and both gradients, of the fast implementation and of the law."""
    results = []
    for name in (FAST, "reference"):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with force("cross_entropy", name):
            loss = cross_entropy(h, w, target)
        (factor * loss).backward()
        assert h.grad is not None
        assert w.grad is not None
        results.append((loss.detach(), h.grad, w.grad))
    return results


@pytest.mark.parametrize("N", [1, 63, 100, 257])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_equals_the_law(N: int, ignored: float) -> None:
    chunked, law = losses(*draw(N, ignored))
    for a, b in zip(chunked, law, strict=True):
        assert (a - b).abs().max() <= 5e-6 * b.abs().max()


def test_the_law_is_the_definition() -> None:
    hidden, weight, target = draw(20)
    terms = [-(hidden[n] @ weight.T).log_softmax(-1)[t] for n, t in enumerate(target.tolist()) if t != IGNORE]
    with force("cross_entropy", "reference"):
        assert cross_entropy(hidden, weight, target).item() == pytest.approx(sum(terms).item() / len(terms), rel=1e-6)


@pytest.mark.parametrize("N", [1, 20])
def test_nothing_to_count_is_zero_with_zero_gradients(N: int) -> None:
    hidden, weight, target = draw(N)
    for loss, d_hidden, d_weight in losses(hidden, weight, torch.full_like(target, IGNORE)):
        assert loss == 0
        assert (d_hidden == 0).all()
        assert (d_weight == 0).all()


def test_ignored_rows_get_a_zero_gradient() -> None:
    hidden, weight, target = draw(50)
    (_, d_hidden, _), _ = losses(hidden, weight, target)
    assert (d_hidden[target == IGNORE] == 0).all()
    assert (d_hidden[target != IGNORE] != 0).any(-1).all()


def test_logits_of_ten_thousand() -> None:
    hidden, weight, target = draw(63)
    hidden *= 1e4 / (hidden @ weight.T).abs().max()
    chunked, law = losses(hidden, weight, target)
    for a, b in zip(chunked, law, strict=True):
        assert a.isfinite().all()
        assert (a - b).abs().max() <= 2e-3 * b.abs().max()  # fp32 logits of 1e4 are known to 1e-3


def test_bf16_activations_with_an_fp32_head() -> None:
    chunked, law = losses(*draw(100, dtype=torch.bfloat16))
    for a, b in zip(chunked, law, strict=True):
        assert a.dtype == b.dtype
        assert (a.float() - b.float()).abs().max() <= 2e-2 * b.float().abs().max()
    assert (chunked[1].dtype, chunked[2].dtype) == (torch.bfloat16, torch.float32)


def test_only_the_gradients_asked_for() -> None:
    hidden, weight, target = draw(30)
    expected = losses(hidden, weight, target, factor=1.0)[1]
    for need_h, need_w in ((True, False), (False, True)):
        h, w = hidden.clone().requires_grad_(need_h), weight.clone().requires_grad_(need_w)
        cross_entropy(h, w, target).backward()
        for leaf, grad in ((h, expected[1]), (w, expected[2])):
            if leaf.requires_grad:
                torch.testing.assert_close(leaf.grad, grad)
            else:
                assert leaf.grad is None
    with torch.no_grad():
        assert cross_entropy(hidden, weight, target).item() == pytest.approx(expected[0].item(), rel=1e-6)


def test_token_losses_average_to_the_loss() -> None:
    hidden, weight, target = draw(100)
    each = token_losses(hidden, weight, target)
    assert (each[target == IGNORE] == 0).all()
    torch.testing.assert_close(each, F.cross_entropy(hidden @ weight.T, target, reduction="none", ignore_index=IGNORE))
    mean = each.sum() / (target != IGNORE).sum()
    assert mean.item() == pytest.approx(cross_entropy(hidden, weight, target).item(), rel=1e-6)


def test_token_losses_of_nothing() -> None:
    _, weight, target = draw(1)
    assert token_losses(torch.zeros(0, D), weight, target[:0]).shape == (0,)


class _Largest(TorchDispatchMode):
    """Records the largest fp32 tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.dtype == torch.float32:
                self.numel = max(self.numel, leaf.numel())
        return out


@pytest.mark.parametrize("_rows", [None], indirect=True)  # the real chunk size
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_logits_are_never_there_at_once(dtype: torch.dtype) -> None:
    N, large = 192, 2**16
    hidden = torch.randn(N, 4).to(dtype).requires_grad_()
    weight = torch.randn(large, 4).requires_grad_()
    target = torch.randint(large, (N,))
    largest = {}
    for name in (FAST, "reference"):
        with force("cross_entropy", name), _Largest() as seen:
            cross_entropy(hidden, weight, target).backward()
        largest[name] = seen.numel
    assert largest["reference"] == N * large  # the measure sees them where they are
    assert largest[FAST] <= 2**23
    with _Largest() as seen:
        token_losses(hidden, weight, target)
    assert seen.numel <= 2**23
