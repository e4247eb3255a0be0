"""A row draws the same alone and in company, and each setting acts on its own row."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from moonlet.generate.request import Request
from moonlet.generate.sample import RandomStream, SamplingParams
from moonlet.generate.sampler import Sampler, draw_all
from moonlet.text.byte import ByteTokenizer
from moonlet.text.word import WordTokenizer
from tests.generate.plain_sampler import sample

BYTES = ByteTokenizer()
V = BYTES.vocab_size + 8  # a vocabulary padded beyond the tokenizer's


@dataclass
class OneOf:
    """A grammar of texts of one letter out of `letters`; with `fails`, one whose matcher breaks down."""

    letters: str
    fails: bool = False
    taken: list[int] = field(default_factory=list)

    def matcher(self) -> OneOf:
        return OneOf(self.letters, self.fails)

    def allowed(self) -> bytes:
        if self.fails:
            raise ValueError("the grammar broke down")
        ids = [BYTES.eos_id] if self.taken else [BYTES.encode(letter)[0] for letter in self.letters]
        bits = bytearray((BYTES.vocab_size + 7) // 8)
        for index in ids:
            bits[index // 8] |= 1 << index % 8
        return bytes(bits)

    def take(self, token: int) -> None:
        self.taken.append(token)

    @property
    def done(self) -> bool:
        return bool(self.taken)


SETTINGS = [
    SamplingParams(temperature=0),
    SamplingParams(seed=1),
    SamplingParams(seed=2, temperature=1.3, top_k=40),
    SamplingParams(seed=3, top_p=0.9),
    SamplingParams(seed=4, top_k=7, top_p=0.8, min_p=0.02, logprobs=5),
    SamplingParams(seed=5, min_p=0.1, temperature=0.5),
    SamplingParams(seed=6, repetition_penalty=1.4, logprobs=0),
    SamplingParams(seed=7, frequency_penalty=1.0, presence_penalty=0.5, top_p=0.95),
    SamplingParams(seed=8, logit_bias={40: 4.0, 41: -100.0}, logprobs=20),
    SamplingParams(temperature=0, logit_bias={300 % V: -3.0}, presence_penalty=2.0, logprobs=3),
]


def sampler(params: SamplingParams, prompt: tuple[int, ...] = (0, 40, 41, 42), **more: object) -> Sampler:
    return Sampler(Request(prompt, params, **more), BYTES, V)  # type: ignore[arg-type]


def logits_of(step: int, row: int) -> Tensor:
    x = torch.randn(V, generator=torch.Generator().manual_seed(100 * step + row)) * 3
    x[50] = x[51] = x.max()  # a tie at the top
    return x


def test_a_row_draws_to_the_bit_the_same_alone_and_in_company() -> None:
    rows = [SETTINGS[i % len(SETTINGS)] for i in range(17)]
    alone = [sampler(params) for params in rows]
    together = [sampler(params) for params in rows]
    for step in range(12):
        logits = torch.stack([logits_of(step, row) for row in range(len(rows))])
        assert draw_all(together, logits) == [one.draw(logits[i]) for i, one in enumerate(alone)]


def test_company_may_come_and_go() -> None:
    watched, alone = sampler(SETTINGS[4]), sampler(SETTINGS[4])
    for step in range(8):
        company = [sampler(SETTINGS[(step + i) % len(SETTINGS)]) for i in range(step % 5)]
        logits = torch.stack([logits_of(step, row) for row in range(len(company) + 1)])
        assert draw_all([*company, watched], logits)[-1] == alone.draw(logits[-1])


@pytest.mark.parametrize("params", SETTINGS[:6])
def test_a_simple_row_draws_as_sample_does(params: SamplingParams) -> None:
    one, stream = sampler(params), RandomStream(params.seed or 0, (0, 40, 41, 42), 0)
    for step in range(8):
        logits = logits_of(step, 0)
        want = sample(logits[None, : BYTES.vocab_size], params, [stream.uniform()])
        assert [one.draw(logits).token] == want


def test_logits_are_left_alone() -> None:
    logits = torch.stack([logits_of(0, row) for row in range(len(SETTINGS))])
    before = logits.clone()
    draw_all([sampler(params) for params in SETTINGS], logits)
    assert torch.equal(logits, before)


def test_ids_beyond_the_tokenizer_are_neither_drawn_nor_told() -> None:
    logits = torch.zeros(V)
    logits[BYTES.vocab_size :] = 50.0
    for seed in range(20):
        drawn = sampler(SamplingParams(seed=seed, logprobs=20)).draw(logits)
        assert drawn.token < BYTES.vocab_size
        assert all(one.token < BYTES.vocab_size for one in drawn.likely)


def test_the_unknown_token_is_drawn_only_by_rows_that_allow_it() -> None:
    words = WordTokenizer(["a", "b"])
    assert words.unk_id is not None
    logits = torch.zeros(2, words.vocab_size)
    logits[:, words.unk_id] = 50.0
    rows = [Sampler(Request((0,), SamplingParams(unknown=u, seed=0)), words, words.vocab_size) for u in (False, True)]
    hidden, shown = draw_all(rows, logits)
    assert hidden.token != words.unk_id
    assert shown.token == words.unk_id


def test_log_probabilities_are_the_models_own() -> None:
    params = SamplingParams(temperature=0.3, top_k=2, logit_bias={60: 90.0}, repetition_penalty=3.0, logprobs=4, seed=1)
    logits = logits_of(0, 0)
    drawn = sampler(params).draw(logits)
    log_p = logits.log_softmax(-1)
    assert drawn.token == 60
    assert drawn.logprob == log_p[60].item()
    assert [one.logprob for one in drawn.likely] == log_p.topk(4).values.tolist()
    assert [one.token for one in drawn.likely[:2]] == [50, 51]  # of a tie the first id comes first


def test_without_logprobs_nothing_is_told() -> None:
    drawn = sampler(SamplingParams(seed=1)).draw(logits_of(0, 0))
    assert (drawn.logprob, drawn.likely) == (None, ())
    drawn = sampler(SamplingParams(seed=1, logprobs=0)).draw(logits_of(0, 0))
    assert drawn.logprob is not None
    assert drawn.likely == ()


def test_penalties_on_counts_see_generated_tokens_and_not_the_prompt() -> None:
    logits = torch.full((V,), -5.0)
    logits[40], logits[41] = 1.0, 0.4
    one = sampler(SamplingParams(temperature=0, presence_penalty=0.5), prompt=(40, 40, 40))
    # 1.0 and 0.4, then 0.5 and 0.4, since presence counts once: 40 again and again.
    assert [one.draw(logits).token for _ in range(3)] == [40, 40, 40]
    one = sampler(SamplingParams(temperature=0, frequency_penalty=0.5), prompt=(40, 40, 40))
    # 1.0 | 0.5 and 0.4 | 0.0 and 0.4 | 0.0 and -0.1.
    assert [one.draw(logits).token for _ in range(4)] == [40, 40, 41, 40]


def test_the_repetition_penalty_sees_the_prompt_too() -> None:
    logits = torch.zeros(V)
    logits[40], logits[41] = 1.0, 0.9
    one = sampler(SamplingParams(temperature=0, repetition_penalty=2.0), prompt=(0, 40))
    assert [one.draw(logits).token for _ in range(2)] == [41, 40]


def test_edits_run_in_the_order_of_transformers() -> None:
    # The bias comes before the penalty that divides: (1 + 3) / 2 = 2, and not 1 / 2 + 3.
    logits = torch.zeros(V)
    logits[40], logits[41] = 1.0, 2.5
    one = sampler(SamplingParams(temperature=0, repetition_penalty=2.0, logit_bias={40: 3.0}), prompt=(0, 40))
    assert one.draw(logits).token == 41


def test_a_bias_forces_and_bans() -> None:
    for seed in range(20):
        assert sampler(SamplingParams(seed=seed, logit_bias={77: 100})).draw(logits_of(seed, 0)).token == 77
    banned = {index: -100 for index in range(BYTES.vocab_size) if index != 9}
    assert sampler(SamplingParams(seed=0, logit_bias=banned)).draw(logits_of(0, 0)).token == 9


def test_a_bias_beyond_the_vocabulary_is_refused() -> None:
    last = BYTES.vocab_size - 1
    with pytest.raises(ValueError, match=f"logit_bias names token {last + 1}; the vocabulary is 0..{last}"):
        sampler(SamplingParams(logit_bias={last + 1: 1.0}))


def test_a_row_that_is_not_finite_fails_alone() -> None:
    rows = [sampler(SETTINGS[i]) for i in (0, 1, 0, 3)]
    logits = torch.stack([logits_of(0, row) for row in range(4)])
    logits[0, 3], logits[1, 3] = float("nan"), float("inf")
    drawn = draw_all(rows, logits)
    assert ["not finite" in (one.error or "") for one in drawn] == [True, True, False, False]
    assert [one.token for one in drawn[:2]] == [-1, -1]
    assert [one.token for one in drawn[2:]] == [
        sampler(SETTINGS[i]).draw(logits_of(0, r)).token for i, r in ((0, 2), (3, 3))
    ]
    with pytest.raises(ValueError, match="not finite"):
        sampler(SETTINGS[1]).draw(logits[0])


def test_a_grammar_decides_what_is_drawn_and_where_the_text_ends() -> None:
    end = BYTES.eos_id + 1
    for seed in range(10):
        one = sampler(SamplingParams(seed=seed, temperature=2.0), grammar=OneOf("xyz"), ends=frozenset({end}))
        assert not one.done
        assert BYTES.decode([one.draw(logits_of(0, seed)).token]) in ("x", "y", "z")
        assert one.done
        assert one.draw(logits_of(1, seed)).token == end


def test_a_grammar_that_breaks_down_ends_its_own_row_alone() -> None:
    rows = [sampler(SETTINGS[1]), sampler(SETTINGS[0], grammar=OneOf("x", fails=True)), sampler(SETTINGS[1])]
    logits = logits_of(0, 0).expand(3, -1)
    first, broken, last = draw_all(rows, logits)
    assert broken.error == "the grammar broke down"
    assert first == last == sampler(SETTINGS[1]).draw(logits_of(0, 0))


def test_a_grammar_without_a_way_on_says_so() -> None:
    one = sampler(SETTINGS[0], grammar=OneOf("x"))  # it must end, and nothing ends this request
    one.draw(logits_of(0, 0))
    with pytest.raises(ValueError, match="lets no token of the vocabulary follow"):
        one.draw(logits_of(0, 0))


def test_draws_follow_the_distribution_in_a_batch() -> None:
    logits = torch.full((V,), -math.inf)
    logits[:3] = torch.tensor([0.5, 0.2, 0.3]).log()
    n = 4000
    rows = [sampler(SamplingParams(temperature=1.0, seed=seed)) for seed in range(n)]
    found = torch.bincount(torch.tensor([d.token for d in draw_all(rows, logits.expand(n, -1))]), minlength=3) / n
    assert (found - torch.tensor([0.5, 0.2, 0.3])).abs().max() < 0.03
