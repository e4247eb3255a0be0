"""The delta rule: every form equals the recurrence in value and gradient, however it is used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moonlet.ops import delta_chunked, delta_stress
from moonlet.ops.delta import choose, delta_rule, delta_step, reference
from moonlet.ops.delta_chunked import chunked
from moonlet.ops.delta_native import native
from moonlet.ops.delta_stress import CHUNKS, Case, Rule, cases, draw, gradcheck, judge, law, results
from moonlet.ops.native import library, without_kernels

TYPICAL = Case("typical", 100, "mixed by channel")

with_kernel = pytest.mark.skipif(library("delta") is None, reason="the kernel needs a C++ compiler")
each_form = pytest.mark.parametrize(
    "rule", [chunked, pytest.param(native, marks=with_kernel)], ids=["chunked", "native"]
)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_every_form_equals_the_recurrence(case: Case) -> None:
    right = law(case)
    for chunk in CHUNKS:
        outcome = judge(chunked, case, right, chunk)
        assert outcome.passed(), outcome
    outcome = judge(native, case, right)
    assert outcome.passed(), outcome


@with_kernel
@pytest.mark.parametrize("T", [127, 128, 129, 300])
def test_the_kernel_is_exact_where_one_of_its_spans_ends(T: int) -> None:
    for decay in ("usual", "e^-80 a tile"):
        case = Case("spans", T, decay, documents="random", shape=(2, 1, 24, 16))
        outcome = judge(native, case, law(case))
        assert outcome.passed(), outcome


@with_kernel
def test_the_kernels_bits_do_not_depend_on_threads() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(native, draw(TYPICAL), None, gradients=True))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@with_kernel
def test_nothing_of_a_document_reaches_the_next() -> None:
    # The decays that hide it are zeros, so a gradient across the border is exactly zero, and so are its effects.
    inputs = draw(Case("border", 60))
    q, k, v, g, beta, state = (x.requires_grad_() for x in inputs.tensors)
    documents = (torch.arange(60) >= 37).long().expand(2, 60)
    o, last = native(q, k, v, g, beta, 0.3, state, documents)
    found = torch.autograd.grad([o[:, 37:].sum() + last.sum()], [q, k, v, g, beta, state])
    assert all((x[:, :37] == 0).all() for x in found[:5])
    assert (found[3][:, 37] == 0).all()
    assert (found[5] == 0).all()
    alone, _ = native(*(x[:, 37:] for x in (q, k, v, g, beta)), 0.3)
    torch.testing.assert_close(o[:, 37:], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", list(delta_stress.DECAYS))
@pytest.mark.parametrize("T", [1, 17, 64, 70])
def test_segments_make_no_difference(monkeypatch: pytest.MonkeyPatch, T: int, decay: str) -> None:
    # Segments of one chunk, of which the others' tests hold one or two.
    monkeypatch.setattr(delta_chunked, "_SEGMENT", {"cpu": 1})
    for documents in ("", "random"):
        case = Case("segments", T, decay, documents=documents)
        outcome = judge(chunked, case, law(case), 16)
        assert outcome.passed(), outcome


@pytest.mark.parametrize("tile", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("documents", ["", "random"])
def test_every_size_of_tile_is_exact(monkeypatch: pytest.MonkeyPatch, tile: int, documents: str) -> None:
    monkeypatch.setattr(delta_chunked.delta_tiles, "choose_tile", lambda g: tile)
    case = Case("tiles", 100, "usual", documents=documents)
    outcome = judge(chunked, case, law(case), 64)
    assert outcome.passed(), outcome


def test_gradients_are_those_of_its_own_values() -> None:
    for chunk in CHUNKS:
        assert gradcheck(chunked, chunk).passed()


@each_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_only_rounded_where_they_must_be(rule: Rule, dtype: torch.dtype) -> None:
    # All is computed in fp32: what is returned in fp32 is as exact as with fp32 inputs, the rest is rounded once.
    case = Case("narrow", 100, "mixed by channel", dtype=dtype)
    outcome = judge(rule, case, law(case))
    for name in ("state", "dg", "dbeta", "dstate"):
        assert outcome.errors[name] <= 1e-5, name
    for name in ("o", "dq", "dk", "dv"):
        assert outcome.errors[name] <= torch.finfo(dtype).eps * 0.51, name


@each_form
@pytest.mark.parametrize("inference", [torch.no_grad, torch.inference_mode])
def test_without_gradients_values_are_the_same(rule: Rule, inference: type[torch.no_grad]) -> None:
    inputs = draw(TYPICAL)
    o, state = inputs.call(rule, [x.requires_grad_() for x in inputs.tensors])
    with inference():
        again = inputs.call(rule, inputs.tensors)
    assert torch.equal(o, again[0])
    assert torch.equal(state, again[1])
    assert not again[0].requires_grad


@each_form
@pytest.mark.parametrize("which", range(6))
def test_any_input_may_be_the_only_one_with_a_gradient(rule: Rule, which: int) -> None:
    inputs = draw(TYPICAL)
    every = results(rule, inputs, None, gradients=True)[2:]
    tensors = [x.requires_grad_(i == which) for i, x in enumerate(inputs.tensors)]
    o, state = inputs.call(rule, tensors)
    weights = [w.float() for w in inputs.weights]
    (alone,) = torch.autograd.grad([o, state], [tensors[which]], weights)
    assert torch.equal(alone, every[which])


@each_form
def test_the_gradient_of_one_result_alone(rule: Rule) -> None:
    # Autograd hands a missing gradient over as zeros.
    inputs = draw(TYPICAL)
    wide = [x.double().requires_grad_() for x in inputs.tensors]
    tensors = [x.requires_grad_() for x in inputs.tensors]
    for part in (0, 1):
        right = torch.autograd.grad(inputs.call(reference, wide)[part].sum(), wide, allow_unused=True)
        found = torch.autograd.grad(inputs.call(rule, tensors)[part].sum(), tensors)
        for ours, exact in zip(found, right, strict=True):
            exact = torch.zeros_like(ours) if exact is None else exact.float()
            torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5 * max(1.0, exact.abs().max().item()))


@each_form
def test_backward_twice_is_the_same(rule: Rule) -> None:
    inputs = draw(TYPICAL)
    tensors = [x.requires_grad_() for x in inputs.tensors]
    o, _ = inputs.call(rule, tensors)
    first = torch.autograd.grad(o.sum(), tensors, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(o.sum(), tensors), strict=True):
        assert torch.equal(a, b)


def test_calls_one_after_the_other_are_one_call() -> None:
    inputs = draw(TYPICAL)
    q, k, v, g, beta, state = (x.double().requires_grad_() for x in inputs.tensors)
    whole = chunked(q, k, v, g, beta, 0.3, state)
    parts, now = [], state
    for part in (slice(0, 1), slice(1, 40), slice(40, 41), slice(41, 100)):
        o, now = chunked(*(x[:, part] for x in (q, k, v, g, beta)), 0.3, now)
        parts.append(o)
    torch.testing.assert_close((torch.cat(parts, 1), now), whole, rtol=1e-12, atol=1e-12)
    ours, right = (torch.autograd.grad(S.sum(), (q, k, v, g, beta, state), allow_unused=True) for S in (now, whole[1]))
    torch.testing.assert_close(ours[1:], right[1:], rtol=1e-12, atol=1e-12)


@each_form
def test_what_is_saved_grows_with_the_inputs_alone(rule: Rule) -> None:
    saved: list[Tensor] = []

    def numbers(T: int) -> int:
        saved.clear()
        inputs = draw(Case("memory", T, shape=(1, 8, 64, 64)))
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
            inputs.call(rule, [x.requires_grad_() for x in inputs.tensors])
        # Storages: a state must not hold on to the segment it was part of.
        return sum(x.untyped_storage().nbytes() // x.element_size() for x in saved)

    one, two = numbers(1024), numbers(2048)
    assert one <= 1.2 * 1024 * 8 * (4 * 64 + 1)
    assert two <= 2 * one


@each_form
def test_no_tokens_leave_the_state_as_it_is(rule: Rule) -> None:
    inputs = draw(TYPICAL)
    o, state = rule(*(x[:, :0] for x in inputs.tensors[:5]), 0.3, inputs.tensors[5])
    assert o.shape == (2, 0, 2, 16)
    assert torch.equal(state, inputs.tensors[5])
    assert state.data_ptr() != inputs.tensors[5].data_ptr()


@pytest.mark.parametrize("chunk", [0, 8, 17, 48])
def test_a_chunk_that_is_none_is_told(chunk: int) -> None:
    inputs = draw(TYPICAL)
    with pytest.raises(ValueError, match=f"a chunk of {chunk} tokens; it must be 16"):
        inputs.call(chunked, inputs.tensors, chunk=chunk)


@pytest.mark.parametrize("T", [1, 2, 3, 100])
def test_whatever_is_chosen_equals_the_recurrence(T: int) -> None:
    for documents in ("", "random"):
        case = Case("chosen", T, "mixed by channel", documents=documents)
        assert judge(delta_rule, case, law(case)).passed()


def test_few_tokens_are_taken_one_by_one() -> None:
    x = torch.zeros(1, 100, 2, 8)
    assert choose(x[:, :1], x, x, None) == "reference"
    with without_kernels():
        assert choose(x, x, x, None) == "chunked"


@with_kernel
def test_the_kernel_is_chosen_where_it_can_be() -> None:
    x = torch.zeros(1, 100, 2, 8)
    assert choose(x, x, x, None) == "native"
    assert choose(x.half(), x.half(), x, None) == "chunked"
    assert choose(*[x.double()] * 3, None) == "chunked"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3])
def test_steps_equal_the_recurrence(rows: int, dtype: torch.dtype) -> None:
    inputs = draw(Case("steps", 20, "mixed by channel", dtype=dtype, shape=(rows, 2, 24, 16)))
    q, k, v, g, beta, state = inputs.tensors
    o, last = reference(q, k, v, g, beta, inputs.scale, state)
    found = [delta_step(q[:, t], k[:, t], v[:, t], g[:, t], beta[:, t], state, scale=inputs.scale) for t in range(20)]
    assert found[0].dtype == dtype
    torch.testing.assert_close(torch.stack(found, 1), o, rtol=1.6e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


def test_a_step_changes_a_view_of_states_in_place() -> None:
    q, k, v, g, beta, state = draw(Case("views", 1, shape=(2, 2, 24, 16))).tensors
    tokens = [x[:, 0] for x in (q, k, v, g, beta)]
    expected = state.clone()
    delta_step(*tokens, expected)
    wide = torch.full((4, 3, 24, 20), 7.0)  # rows, heads and columns of which are left out
    view = wide[::2, :2, :, :16]
    view.copy_(state)
    delta_step(*tokens, view)
    torch.testing.assert_close(view, expected)
    assert (wide[1::2] == 7).all()
    assert (wide[..., 16:] == 7).all()
