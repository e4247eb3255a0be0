"""Filters mean what they mean in transformers; a row's draws depend on its own random stream only."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from moonlet.generate.sample import (
    RandomStream,
    SamplingParams,
    add_bias,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_counts,
    penalize_repetition,
    scale_temperature,
)
from tests.generate.plain_sampler import sample, warp

B, V = 7, 93


@pytest.fixture
def logits() -> Tensor:
    x = torch.randn(B, V, generator=torch.Generator().manual_seed(0)) * 3
    x[:, 5] = x[:, 6]  # a tie
    return x


@pytest.fixture
def history() -> Tensor:
    return torch.randint(0, V, (B, 12), generator=torch.Generator().manual_seed(1))


def seen(history: Tensor) -> Tensor:
    return torch.zeros(B, V, dtype=torch.bool).scatter_(1, history, True)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda x: scale_temperature(x, 0.7), TemperatureLogitsWarper(0.7)),
        *[(lambda x, k=k: keep_top_k(x, k), TopKLogitsWarper(k)) for k in (1, 5, V, 200)],
        *[(lambda x, p=p: keep_top_p(x, p), TopPLogitsWarper(p)) for p in (1e-6, 0.3, 0.9, 0.999)],
        *[(lambda x, p=p: keep_min_p(x, p), MinPLogitsWarper(p)) for p in (0.01, 0.2, 1.0)],
    ],
)
def test_filter_equals_transformers(
    logits: Tensor, history: Tensor, ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor, Tensor], Tensor]
) -> None:
    torch.testing.assert_close(ours(logits), theirs(history, logits.clone()), rtol=0, atol=0)


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_repetition_penalty_equals_transformers(logits: Tensor, history: Tensor, penalty: float) -> None:
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(history, logits.clone())
    torch.testing.assert_close(penalize_repetition(logits, seen(history), penalty), theirs, rtol=0, atol=0)


def test_bias_equals_transformers(logits: Tensor, history: Tensor) -> None:
    bias = {3: -100.0, 5: 2.5, 92: 100.0}
    theirs = SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})(history, logits.clone())
    ours = add_bias(logits, torch.tensor(list(bias)), torch.tensor(list(bias.values())))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_frequency_counts_each_time_and_presence_once(logits: Tensor) -> None:
    counts = torch.zeros(B, V)
    counts[2, 7], counts[2, 8] = 3, 1
    want = logits.clone()
    want[2, 7] -= 3 * 0.5 + 0.25
    want[2, 8] -= 0.5 + 0.25
    torch.testing.assert_close(penalize_counts(logits, counts, 0.5, 0.25), want)


@pytest.mark.parametrize("p", [0.3, 0.5, 0.9])
def test_of_tokens_that_tie_top_p_keeps_those_of_a_stable_sort(p: float) -> None:
    logits = torch.randint(0, 4, (50, 31), generator=torch.Generator().manual_seed(3)).float()
    ascending, order = logits.sort(dim=-1, stable=True)
    drop = ascending.softmax(-1).cumsum(-1) <= 1 - p
    drop[:, -1] = False
    want = logits.masked_fill(drop.scatter(1, order, drop), float("-inf"))
    assert torch.equal(keep_top_p(logits, p), want)


def test_a_column_of_settings_is_each_rows_own(logits: Tensor) -> None:
    ks, ps = [1, 5, 93, 7, 40, 2, 9], [0.1, 0.3, 0.9, 0.95, 0.5, 0.77, 1e-3]
    fp64, fp32 = torch.tensor(ps, dtype=torch.float64)[:, None], torch.tensor(ps)[:, None]
    for i in range(B):
        one = logits[i : i + 1]
        assert torch.equal(keep_top_k(logits, torch.tensor(ks)[:, None])[i : i + 1], keep_top_k(one, ks[i]))
        assert torch.equal(keep_top_p(logits, fp64)[i : i + 1], keep_top_p(one, ps[i]))
        assert torch.equal(keep_min_p(logits, fp32)[i : i + 1], keep_min_p(one, ps[i]))
        assert torch.equal(scale_temperature(logits, fp32)[i : i + 1], scale_temperature(one, ps[i]))


def test_all_filters_together_run_in_the_order_of_transformers(logits: Tensor, history: Tensor) -> None:
    params = SamplingParams(temperature=1.7, top_k=40, top_p=0.8, min_p=0.05, repetition_penalty=1.4)
    chain = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.4),
            TemperatureLogitsWarper(1.7),
            TopKLogitsWarper(40),
            TopPLogitsWarper(0.8),
            MinPLogitsWarper(0.05),
        ]
    )
    torch.testing.assert_close(warp(logits, params, seen(history)), chain(history, logits.clone()), rtol=0, atol=0)


def test_warping_leaves_the_logits_alone(logits: Tensor, history: Tensor) -> None:
    before = logits.clone()
    warp(logits, SamplingParams(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=2.0), seen(history))
    assert torch.equal(logits, before)


def test_draws_follow_the_distribution() -> None:
    p = torch.tensor([0.5, 0.0, 0.2, 0.3])
    stream = RandomStream(3, [1, 2], 0)
    n = 20_000
    drawn = sample(p.log().expand(n, -1), SamplingParams(temperature=1.0), [stream.uniform() for _ in range(n)])
    found = torch.bincount(torch.tensor(drawn), minlength=4) / n
    assert found[1] == 0
    assert (found - p).abs().max() < 0.015


@pytest.mark.parametrize("u", [0.0, 1.0 - 2**-53])
def test_extreme_numbers_draw_only_what_is_allowed(logits: Tensor, u: float) -> None:
    params = SamplingParams(top_k=4)
    for row, token in zip(logits, sample(logits, params, [u] * B), strict=True):
        assert token in row.topk(4).indices


def test_greedy_takes_the_likeliest(logits: Tensor) -> None:
    assert sample(logits, SamplingParams(temperature=0), []) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(logits: Tensor, temperature: float, bad: float) -> None:
    logits[3, 4] = bad
    with pytest.raises(ValueError, match="not finite"):
        sample(logits, SamplingParams(temperature=temperature), [0.5] * B)


def test_random_stream_is_decided_by_seed_prompt_and_repeat() -> None:
    def first(seed: int, prompt: list[int], repeat: int) -> float:
        return RandomStream(seed, prompt, repeat).uniform()

    assert first(1, [2, 3], 0) == first(1, [2, 3], 0)
    assert len({first(1, [2, 3], 0), first(2, [2, 3], 0), first(1, [23], 0), first(1, [2, 3], 1)}) == 4


def test_random_stream_is_the_same_for_ever() -> None:
    # Texts made with a seed are to be made again by later versions and on other machines.
    stream = RandomStream(7, [0, 20, 21], 0)
    assert [round(stream.uniform(), 12) for _ in range(2)] == [0.277354076364, 0.470383442116]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; it must be a whole number"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan; it must be a finite number"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"repetition_penalty": 1e9}, "repetition_penalty is 1000000000.0; it must lie in 1e-6..1e6"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"frequency_penalty": 2.1}, "frequency_penalty is 2.1; it must lie in -2..2"),
        ({"presence_penalty": float("inf")}, "presence_penalty is inf; it must be a finite number"),
        ({"presence_penalty": -3}, "presence_penalty is -3; it must lie in -2..2"),
        ({"logprobs": 21}, "logprobs is 21; it must lie in 0..20"),
        ({"logprobs": True}, "logprobs is True; it must be a whole number"),
        ({"logit_bias": [1]}, "logit_bias is .1.; it must map token ids"),
        ({"logit_bias": {"7": 1}}, "logit_bias has the key '7'; keys must be token ids"),
        ({"logit_bias": {-1: 1}}, "logit_bias has the key -1"),
        ({"logit_bias": {7: 101}}, "logit_bias.7. is 101; it must be a number in -100..100"),
        ({"logit_bias": {7: float("nan")}}, "logit_bias.7. is nan"),
        ({"stop": ("",)}, "stop is"),
        ({"stop": "end"}, "stop is 'end'"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**setting)  # type: ignore[arg-type]


def test_settings_keep_a_bias_of_their_own_and_can_be_hashed() -> None:
    bias = {3: 1.0}
    params = SamplingParams(logit_bias=bias)
    bias[3] = 500.0
    assert params.logit_bias == {3: 1.0}
    assert hash(params) == hash(SamplingParams(logit_bias={3: 1.0}))


@pytest.mark.parametrize("temperature", [1e-320, 1e-31, 1e-29])
def test_a_temperature_near_zero_overflows_nothing(logits: Tensor, temperature: float) -> None:
    drawn = sample(logits * 1e3, SamplingParams(temperature=temperature), [0.0] * B)
    assert drawn == logits.argmax(-1).tolist()
