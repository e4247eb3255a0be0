"""The short convolution: the tiled form is the grouped convolution, in value and gradient, wherever a text begins."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moonlet.ops import tiles
from moonlet.ops.dispatch import force
from moonlet.ops.native import library
from moonlet.ops.short_conv import last_inputs, short_conv

with_kernels = library("kda") is not None
LENGTHS = [1, 2, 3, 4, 63, 100]


def inputs(B: int, T: int, C: int = 6, W: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T)
    x = torch.randn(B, T, C, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(C, 1, W, generator=generator).requires_grad_()
    return x, weight


def borders(B: int, T: int) -> Tensor:
    """Documents of one to a few tokens, whose ids come back after another document."""
    generator = torch.Generator().manual_seed(T)
    return (torch.rand(B, T, generator=generator) < 0.4).cumsum(1) % 2


def history(x: Tensor, W: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(x.shape[0], W - 1, x.shape[2], generator=generator).to(x.dtype).requires_grad_()


@pytest.fixture(params=[8, 100, 2**30], ids=["small tiles", "tiles", "one tile"])
def _tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of a few tokens, so that borders between them fall everywhere, and one for all."""
    monkeypatch.setattr(tiles, "_ELEMENTS", request.param)
    monkeypatch.setattr("moonlet.ops.short_conv._FEWEST", 1 if request.param == 8 else 32)


@pytest.mark.usefixtures("_tile")
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("head_dim", [None, 3])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("continued", [False, True])
def test_every_form_is_the_law_in_value_and_gradient(
    T: int, head_dim: int | None, packed: bool, continued: bool
) -> None:
    x, weight = inputs(3, T)
    before = history(x) if continued else None
    documents = borders(3, T) if packed else None
    inputs_ = [x, weight] + [before] * continued
    out, native, law = [], [], []
    forms = [("tiled", out), ("reference", law)] + [("native", native)] * with_kernels
    for name, into in forms:
        with force("short_conv", name):
            y = short_conv(x, weight, head_dim=head_dim, before=before, documents=documents)
        d = torch.cos(torch.arange(y.numel(), dtype=torch.float32)).view_as(y)
        into += [y, *torch.autograd.grad(y, inputs_, d, materialize_grads=True)]
    for got, want in [*zip(out, law, strict=True), *zip(native, law, strict=False)]:
        assert (got - want).abs().max() <= 1e-6 * (1 + want.abs().max())


@pytest.mark.parametrize("W", [1, 2, 4, 7])
@pytest.mark.parametrize("T", [1, 5])
def test_any_number_of_taps(W: int, T: int) -> None:
    x, weight = inputs(2, T, W=W)
    before = history(x, W)
    with force("short_conv", "reference"):
        law = short_conv(x, weight, head_dim=2, before=before)
    for name in ["tiled"] + ["native"] * with_kernels:
        with force("short_conv", name):
            torch.testing.assert_close(short_conv(x, weight, head_dim=2, before=before), law, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not with_kernels, reason="kernels need a C++ compiler")
@pytest.mark.parametrize(("C", "head_dim"), [(128, 64), (120, 40), (33, None)])
def test_wide_heads_and_odd_widths(C: int, head_dim: int | None) -> None:
    x, weight = inputs(2, 150, C=C)
    found = []
    for threads, name in ((1, "reference"), (1, "native"), (3, "native")):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        with force("short_conv", name):
            y = short_conv(x, weight, head_dim=head_dim, documents=borders(2, 150))
            found.append([y, *torch.autograd.grad(y.square().sum() + y[:, 7].sum(), (x, weight))])
        torch.set_num_threads(before)
    for law, got, again in zip(*found, strict=True):
        assert (got - law).abs().max() <= 3e-6 * (1 + law.abs().max())
        assert torch.equal(got, again)


def test_the_last_tap_is_the_token_itself_and_earlier_ones_look_back() -> None:
    x = torch.zeros(1, 6, 1)
    x[0, 2] = 1.0
    y = short_conv(x, torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))[0, :, 0]
    want = torch.nn.functional.silu(torch.tensor([0.0, 0.0, 4.0, 3.0, 2.0, 1.0]))
    torch.testing.assert_close(y, want, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("_tile")
@pytest.mark.parametrize("pieces", [[1] * 9, [2, 7], [1, 1, 5, 2], [4, 4, 1]], ids=str)
def test_any_split_with_its_last_inputs_is_the_whole(pieces: list[int]) -> None:
    x, weight = (t.detach() for t in inputs(2, 9))
    before, parts = None, []
    for piece in x.split(pieces, 1):
        parts.append(short_conv(piece, weight, head_dim=3, before=before))
        before = last_inputs(piece, before, 3)
    torch.testing.assert_close(torch.cat(parts, 1), short_conv(x, weight, head_dim=3), rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("_tile")
def test_a_packed_document_is_the_document_alone() -> None:
    x, weight = (t.detach() for t in inputs(1, 12))
    documents = torch.tensor([[5, 5, 5, 1, 5, 5, 0, 0, 0, 0, 0, 2]])
    packed = short_conv(x, weight, head_dim=3, documents=documents)
    alone = [short_conv(part, weight, head_dim=3) for part in x.split([3, 1, 2, 5, 1], 1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-6, atol=1e-7)


def test_what_stands_before_a_border_is_not_multiplied_by_zero() -> None:
    x, weight = (t.detach() for t in inputs(1, 8))
    x[0, :3] = float("nan")
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    assert short_conv(x, weight, documents=documents)[0, 3:].isfinite().all()


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_in_fp64(packed: bool) -> None:
    x, weight = (t.detach().double().requires_grad_() for t in inputs(2, 7))
    before = history(x).detach().double().requires_grad_()
    documents = borders(2, 7) if packed else None
    assert torch.autograd.gradcheck(
        lambda x, w, b: short_conv(x, w, head_dim=3, before=b, documents=documents), (x, weight, before)
    )


def test_bf16_is_the_fp32_result_rounded_once() -> None:
    x, weight = inputs(2, 50, dtype=torch.bfloat16)
    y = short_conv(x, weight, head_dim=3)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, short_conv(x.float(), weight, head_dim=3).bfloat16())
    gradients = torch.autograd.grad(y.float().sum(), (x, weight))
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32]


def test_a_view_of_wider_rows_will_do() -> None:
    x, weight = (t.detach() for t in inputs(2, 20))
    wide = torch.cat((x, torch.full_like(x, float("nan"))), -1)
    assert torch.equal(short_conv(wide[..., :6], weight), short_conv(x, weight))


def test_a_head_of_zeros_stays_zero_and_has_finite_gradients() -> None:
    x, weight = inputs(1, 5)
    y = short_conv(x * 0, weight, head_dim=3)
    assert (y == 0).all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(y.sum(), (x, weight)))
