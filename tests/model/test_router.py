"""The router: the bias chooses and never weighs, groups limit the choice, weights sum to the scale."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moonlet.config import ModelConfig
from moonlet.model.router import Router, sequence_imbalance

E, D = 12, 16


def draw(seed: int, bias: float = 1.0, **changes: object) -> tuple[Router, Tensor]:
    """A random router with a bias of the given spread, in evaluation mode, and 20 tokens."""
    g = torch.Generator().manual_seed(seed)
    chosen = {"n_routed_experts": E, "hidden_size": D, "num_experts_per_tok": 3, "routed_scaling_factor": 2.5}
    router = Router(ModelConfig(**(chosen | changes))).eval()  # type: ignore[arg-type]
    router.weight.data = torch.randn(E, D, generator=g) / 3
    router.e_score_correction_bias.copy_(bias * torch.randn(E, generator=g))
    return router, torch.randn(20, D, generator=g)


def scores_of(router: Router, x: Tensor) -> Tensor:
    return (x @ router.weight.T).sigmoid().detach()


seeds = st.integers(0, 10**6)


@given(seed=seeds, bias=st.floats(0, 10), active=st.integers(1, E))
def test_the_bias_chooses_and_never_weighs(seed: int, bias: float, active: int) -> None:
    router, x = draw(seed, bias, num_experts_per_tok=active, norm_topk_prob=False)
    index, weight = router(x)
    s = scores_of(router, x)
    torch.testing.assert_close(weight, s.gather(1, index) * 2.5, rtol=1e-5, atol=1e-6)
    biased = s + router.e_score_correction_bias
    least = biased.gather(1, index).min(-1).values
    unchosen = biased.scatter(1, index, float("-inf")).max(-1).values
    assert (least >= unchosen - 1e-6).all()
    assert all(len(set(row)) == active for row in index.tolist())


@given(seed=seeds, active=st.integers(1, E), scale=st.floats(0.1, 10))
def test_normalised_weights_sum_to_the_scale(seed: int, active: int, scale: float) -> None:
    router, x = draw(seed, num_experts_per_tok=active, routed_scaling_factor=scale)
    index, weight = router(x)
    torch.testing.assert_close(weight.sum(-1), torch.full((20,), scale), rtol=1e-5, atol=0)
    s = scores_of(router, x).gather(1, index)
    torch.testing.assert_close(weight, s / s.sum(-1, keepdim=True) * scale, rtol=1e-5, atol=1e-6)


@given(seed=seeds, layout=st.sampled_from([(2, 1), (3, 2), (4, 2), (6, 3), (4, 4)]), bias=st.floats(0, 3))
def test_groups_limit_the_choice_to_the_best_groups(seed: int, layout: tuple[int, int], bias: float) -> None:
    groups, top = layout
    router, x = draw(seed, bias, n_group=groups, topk_group=top)
    index, _ = router(x)
    size = E // groups
    biased = (scores_of(router, x) + router.e_score_correction_bias).tolist()
    for row, chosen in zip(biased, index.tolist(), strict=True):
        strength = {g: sum(sorted(row[g * size : (g + 1) * size])[-2:]) for g in range(groups)}
        best = set(sorted(strength, key=lambda g: strength[g])[-top:])
        open_ = [e for e in range(E) if e // size in best]
        assert set(chosen) == set(sorted(open_, key=lambda e: row[e])[-3:])


def test_scores_stay_fp32_whatever_flows_through() -> None:
    router, x = draw(0)
    index, weight = router.bfloat16()(x.bfloat16())
    assert (index.dtype, weight.dtype) == (torch.int64, torch.float32)


def test_the_gradient_passes_through_the_weights_of_the_chosen_only() -> None:
    router, x = draw(0, num_experts_per_tok=1, norm_topk_prob=False)
    index, weight = router(x[:1])
    weight.sum().backward()
    grad = router.weight.grad
    assert grad is not None
    assert set(grad.abs().sum(-1).nonzero().flatten().tolist()) == set(index.flatten().tolist())
    assert not router.e_score_correction_bias.requires_grad


def test_load_counts_what_was_chosen() -> None:
    router, x = draw(3)
    router.train()
    index, _ = router(x)
    assert torch.equal(router.load, torch.bincount(index.flatten(), minlength=E))


def test_what_is_read_without_learning_is_not_counted() -> None:
    router, x = draw(3)
    router.keeps_imbalance = True
    router.eval()(x)
    with torch.no_grad():
        router.train()(x)
    router.route(x)
    assert not router.load.any()
    assert router.imbalance is None


@given(
    rows=st.lists(st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5]), min_size=E, max_size=E), min_size=1),
    active=st.integers(1, E),
)
def test_of_equal_experts_the_lower_index_wins(rows: list[list[float]], active: int) -> None:
    router, _ = draw(0, bias=0.0, num_experts_per_tok=active)
    expected = [sorted(range(E), key=lambda e: (-row[e], e))[:active] for row in rows]
    assert router.choose(torch.tensor(rows)).tolist() == expected


def test_of_equal_groups_the_lower_index_wins() -> None:
    router, _ = draw(0, bias=0.0, n_group=4, topk_group=2, num_experts_per_tok=4)
    assert router.choose(torch.zeros(5, E)).tolist() == [[0, 1, 2, 3]] * 5


def plain_imbalance(scores: Tensor, index: Tensor, rows: int) -> Tensor:
    """The published sum, number by number."""
    T, A = len(scores) // rows, index.shape[1]
    sequences = []
    for r in range(rows):
        tokens = range(r * T, (r + 1) * T)
        for i in range(E):
            f = E / (A * T) * sum(int(i in index[t].tolist()) for t in tokens)
            sequences.append(f * sum(scores[t, i] / sum(scores[t]) for t in tokens) / T)
    return sum(sequences) / torch.tensor(rows, dtype=scores.dtype)


@given(seed=seeds, layout=st.sampled_from([(1, 1), (1, 7), (2, 5), (4, 1)]), active=st.integers(1, E))
@settings(max_examples=15)
def test_the_imbalance_is_the_published_sum_in_value_and_gradient(
    seed: int, layout: tuple[int, int], active: int
) -> None:
    rows, T = layout
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows * T, E, generator=g, dtype=torch.float64).requires_grad_()
    index = torch.rand(rows * T, E, generator=g).topk(active).indices
    ours, plain = sequence_imbalance(scores, index, rows), plain_imbalance(scores, index, rows)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(value, scores)[0] for value in (ours, plain)))
    assert torch.autograd.gradcheck(lambda s: sequence_imbalance(s, index, rows), (scores,))


def test_the_imbalance_is_one_when_all_experts_are_used_alike_and_grows_with_a_crowd() -> None:
    even = torch.arange(2 * E).view(E, 2) % E
    assert sequence_imbalance(torch.ones(E, E), even, 1).item() == pytest.approx(1)
    crowd = torch.zeros(E, 2, dtype=torch.int64) + torch.tensor([0, 1])
    loved = torch.zeros(E, E).index_fill(1, torch.tensor([0, 1]), 1.0)
    assert sequence_imbalance(loved, crowd, 1).item() == pytest.approx(E / 2)


def test_each_sequence_is_weighed_by_itself() -> None:
    # Each of two rows crowds experts of its own: even over the batch, uneven in every sequence.
    index = torch.tensor([[0]] * 4 + [[1]] * 4)
    scores = torch.zeros(8, E).scatter_(1, index, 1.0)
    assert sequence_imbalance(scores, index, 2).item() == pytest.approx(E)
    assert sequence_imbalance(scores, index, 1).item() == pytest.approx(E / 2)


@given(seed=seeds, bias=st.floats(0, 1), active=st.integers(1, E), normalise=st.booleans())
def test_softmax_scores_are_shares_of_all_experts(seed: int, bias: float, active: int, normalise: bool) -> None:
    router, x = draw(seed, bias, scoring_func="softmax", num_experts_per_tok=active, norm_topk_prob=normalise)
    index, weight = router(x)
    exp = (x @ router.weight.T).exp()
    s = exp / exp.sum(-1, keepdim=True)  # over all experts, not over the chosen ones
    choice = s + router.e_score_correction_bias
    assert (choice.gather(1, index).min(-1).values >= choice.sort(-1).values[:, E - active] - 1e-6).all()
    share = s.gather(1, index)
    expected = share / share.sum(-1, keepdim=True) if normalise else share
    torch.testing.assert_close(weight, expected * 2.5, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
@pytest.mark.parametrize("spread", [1e-30, 1e4])
def test_extreme_logits_give_finite_weights(spread: float, scoring: str) -> None:
    router, x = draw(1, bias=0.0, scoring_func=scoring)
    index, weight = router(x * spread)
    assert weight.isfinite().all()
    assert (weight >= 0).all()
    assert index.min() >= 0
