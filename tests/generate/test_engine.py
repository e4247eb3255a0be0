"""Texts: what a full forward would say, the same alone and in company, ended where they should end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import moonlet
from moonlet.generate.engine import _read, complete, generate, stream, stream_ids
from moonlet.generate.sample import RandomStream, SamplingParams
from moonlet.model.model import CausalLM
from moonlet.text import ByteTokenizer, train_word
from tests.generate.plain_sampler import sample

BYTES = ByteTokenizer()
SEEDED = SamplingParams(max_new_tokens=12, temperature=1.0, seed=3)
GREEDY = replace(SEEDED, temperature=0.0)
PROMPTS = ["one", "", "a longer beginning", "one", "été", "x" * 40, "two"]


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., CausalLM]) -> CausalLM:
    return tiny_model(vocab_size=BYTES.vocab_size)


def test_every_token_is_what_a_full_forward_without_cache_gives(model: CausalLM) -> None:
    for params in (GREEDY, replace(SEEDED, top_p=0.9, top_k=50, repetition_penalty=1.3)):
        for prompt in ("one", "x" * 30):
            ids = [BYTES.bos_id, *BYTES.encode(prompt)]
            stream, want = RandomStream(3, ids, 0), []
            for _ in range(params.max_new_tokens):
                with torch.no_grad():
                    logits = model(torch.tensor([ids + want]))[:, -1]
                seen = torch.zeros(1, BYTES.vocab_size, dtype=torch.bool)
                seen[0, ids + want] = True
                want += sample(logits, params, [stream.uniform()], seen)
                if want[-1] == BYTES.eos_id:
                    want.pop()
                    break
            assert complete(model, BYTES, [prompt], params)[0].token_ids == tuple(want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_a_text_is_the_same_alone_and_in_a_batch(
    tiny_model: Callable[..., CausalLM], temperature: float, dtype: torch.dtype
) -> None:
    for case in range(6):
        model = tiny_model(seed=case, vocab_size=BYTES.vocab_size, num_hidden_layers=2).to(dtype)
        params = replace(SEEDED, seed=case, temperature=temperature)
        together = complete(model, BYTES, PROMPTS, params)
        for prompt, text in dict(reversed(list(zip(PROMPTS, together, strict=True)))).items():
            assert complete(model, BYTES, [prompt], params) == [text]


def test_batch_size_and_order_change_no_text(model: CausalLM) -> None:
    want = complete(model, BYTES, PROMPTS, SEEDED, batch_size=1)
    for batch_size in (2, 3, 16):
        assert complete(model, BYTES, PROMPTS, SEEDED, batch_size=batch_size) == want
    backwards = complete(model, BYTES, PROMPTS[::-1], SEEDED)[::-1]
    assert [c for c in backwards if c.prompt != "one"] == [c for c in want if c.prompt != "one"]


def test_rows_that_share_their_products_give_the_same_texts_here(model: CausalLM) -> None:
    # Not promised in general (the last bits differ); on this model no two choices are that near.
    assert complete(model, BYTES, PROMPTS, SEEDED, exact=False) == complete(model, BYTES, PROMPTS, SEEDED)


def test_equal_prompts_get_different_texts_and_the_first_is_the_lone_one(model: CausalLM) -> None:
    texts = generate(model, BYTES, ["one"] * 6, max_new_tokens=12, seed=3, temperature=1.0)
    assert len(set(texts)) == 6
    assert generate(model, BYTES, "one", max_new_tokens=12, seed=3, temperature=1.0) == texts[0]


def test_equal_prompts_are_read_once_and_draw_as_if_each_were_read(
    model: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["one", "two", "one", "", "two", "one"]
    want = complete(model, BYTES, prompts, SEEDED, batch_size=1)
    read: list[int] = []
    monkeypatch.setattr("moonlet.generate.engine._read", lambda *given: read.append(len(given[2])) or _read(*given))
    assert complete(model, BYTES, prompts, SEEDED) == want
    assert read == [3]


def test_equal_seeds_give_equal_texts_and_no_seed_a_fresh_one(model: CausalLM) -> None:
    def text(seed: int | None) -> str:
        return generate(model, BYTES, "one", max_new_tokens=20, seed=seed, temperature=1.0)

    assert text(1) == text(1) != text(2)
    assert text(None) != text(None)


def test_long_prompts_are_read_in_chunks(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    want = complete(model, BYTES, PROMPTS, GREEDY)
    monkeypatch.setattr("moonlet.generate.engine.PREFILL_CHUNK", 7)
    assert complete(model, BYTES, PROMPTS, GREEDY) == want


def test_stop_strings_end_a_text_and_are_not_part_of_it(model: CausalLM) -> None:
    whole = complete(model, BYTES, ["one"], replace(SEEDED, max_new_tokens=40))[0]
    assert len(whole.text) > 12
    stop = whole.text[6:9]  # three characters, at least three tokens
    at = whole.text.index(stop)
    ended = complete(model, BYTES, ["one", "two"], replace(SEEDED, max_new_tokens=40, stop=(stop, "never there")))[0]
    assert (ended.text, ended.finish_reason) == (whole.text[:at], "stop")
    assert ended.token_ids == whole.token_ids[: len(ended.token_ids)]
    assert len(ended.token_ids) < len(whole.token_ids)


def test_eos_ends_a_text(tiny_model: Callable[..., CausalLM]) -> None:
    # Every hidden state of this model points away from all tokens but [EOS], so that is the first token drawn.
    model = tiny_model(vocab_size=BYTES.vocab_size)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[BYTES.eos_id] = model.hidden(torch.tensor([[BYTES.bos_id, *BYTES.encode("one")]]))[0, -1]
    done = complete(model, BYTES, ["one"], GREEDY)[0]
    assert (done.text, done.token_ids, done.finish_reason) == ("", (), "stop")


def test_length_ends_a_text(model: CausalLM) -> None:
    done = complete(model, BYTES, ["one"], replace(GREEDY, max_new_tokens=5))[0]
    assert (len(done.token_ids), done.finish_reason) == (5, "length")


def test_streamed_pieces_join_to_the_texts(model: CausalLM) -> None:
    want = complete(model, BYTES, PROMPTS, SEEDED)
    found = [""] * len(PROMPTS)
    for index, piece in stream(model, BYTES, PROMPTS, SEEDED, batch_size=3):
        assert piece
        found[index] += piece
    assert found == [c.text for c in want]
    shown: list[tuple[int, str]] = []
    complete(model, BYTES, PROMPTS, SEEDED, on_text=lambda index, piece: shown.append((index, piece)))
    assert ["".join(p for i, p in shown if i == n) for n in range(len(PROMPTS))] == found


def test_generate_returns_prompt_and_continuation_in_the_form_it_was_asked(model: CausalLM) -> None:
    done = complete(model, BYTES, ["one"], SEEDED)[0]
    settings = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3}
    assert generate(model, BYTES, "one", **settings) == "one" + done.text  # type: ignore[arg-type]
    assert moonlet.generate(model, BYTES, ["one"], **settings) == ["one" + done.text]


def test_mode_and_router_counts_are_left_as_they_were(model: CausalLM) -> None:
    model.train()
    model.model.layers[0].eval()
    modes = [m.training for m in model.modules()]
    complete(model, BYTES, PROMPTS, SEEDED)
    assert [m.training for m in model.modules()] == modes
    assert all(int(m.load.sum()) == 0 for m in model.modules() if hasattr(m, "load"))
    model.eval()


def test_a_vocabulary_padded_beyond_the_tokenizer_is_never_drawn_from(tiny_model: Callable[..., CausalLM]) -> None:
    model = tiny_model(vocab_size=BYTES.vocab_size + 50)
    with torch.no_grad():
        model.lm_head.weight[BYTES.vocab_size :] *= 100
    done = complete(model, BYTES, PROMPTS, replace(SEEDED, temperature=3.0))
    assert max(max(c.token_ids, default=0) for c in done) < BYTES.vocab_size


def test_the_unknown_token_is_drawn_only_when_asked_for(tiny_model: Callable[..., CausalLM]) -> None:
    tokenizer = train_word(["one two two three three three four"], 19)
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token as likely as the others
    params = replace(SEEDED, max_new_tokens=30)
    drawn = [token for c in complete(model, tokenizer, ["one"] * 8, params) for token in c.token_ids]
    assert tokenizer.unk_id is not None
    assert tokenizer.unk_id not in drawn
    shown = complete(model, tokenizer, ["one"] * 8, replace(params, unknown=True))
    assert tokenizer.unk_id in [token for c in shown for token in c.token_ids]


def test_what_does_not_fit_is_refused_before_anything_is_drawn(model: CausalLM) -> None:
    with pytest.raises(ValueError, match=r"prompt 2 has 501 tokens .* max_new_tokens 12 .* 512 positions"):
        stream(model, BYTES, ["", "x" * 500], SEEDED)
    complete(model, BYTES, ["x" * 499], replace(GREEDY, max_new_tokens=12))  # 512 exactly
    with pytest.raises(ValueError, match="no prompts"):
        complete(model, BYTES, [], SEEDED)
    with pytest.raises(ValueError, match="batch_size is 0"):
        complete(model, BYTES, ["x"], SEEDED, batch_size=0)
    with pytest.raises(ValueError, match="surrogate"):
        complete(model, BYTES, ["\ud800"], SEEDED)


def test_a_tokenizer_larger_than_the_model_is_refused(tiny_model: Callable[..., CausalLM]) -> None:
    with pytest.raises(ValueError, match="272 tokens and the model 61"):
        complete(tiny_model(), BYTES, ["x"], SEEDED)


def test_damaged_weights_are_reported(tiny_model: Callable[..., CausalLM]) -> None:
    model = tiny_model(vocab_size=BYTES.vocab_size)
    with torch.no_grad():
        model.lm_head.weight[7, 3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        complete(model, BYTES, ["x"], GREEDY)


def test_ids_go_on_as_the_text_of_the_same_ids(model: CausalLM) -> None:
    for params in (GREEDY, SEEDED):
        prompt = [BYTES.bos_id, *BYTES.encode("one")]
        text = complete(model, BYTES, ["one"], params)[0]
        drawn = list(stream_ids(model, BYTES, prompt, {BYTES.eos_id}, params))
        assert tuple(token for token in drawn if token != BYTES.eos_id) == text.token_ids
        end = drawn[len(drawn) // 2]
        assert list(stream_ids(model, BYTES, prompt, {end}, params)) == drawn[: drawn.index(end) + 1]


def test_ids_that_cannot_go_on_are_refused(model: CausalLM) -> None:
    for prompt, params, problem in (
        ([], GREEDY, "the prompt is empty"),
        ([3] * 10**5, GREEDY, r"the prompt has 100000 tokens; .* positions"),
        ([3], replace(GREEDY, stop=("x",)), "stop texts need text"),
    ):
        with pytest.raises(ValueError, match=problem):
            stream_ids(model, BYTES, prompt, (), params)
