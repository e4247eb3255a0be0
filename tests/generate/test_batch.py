"""The batching engine: what a request gets is its own to the bit, and everything taken is given back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from moonlet.config import RopeScaling
from moonlet.generate.batch import Engine, Stats
from moonlet.generate.engine import stream_ids
from moonlet.generate.request import Event, Request
from moonlet.generate.sample import SamplingParams
from moonlet.generate.text import TextStream
from moonlet.model.model import CausalLM
from moonlet.ops.dispatch import force
from moonlet.ops.native import library
from moonlet.text import ByteTokenizer
from tests.conftest import GQA, LINEAR

Make = Callable[..., CausalLM]

BYTES = ByteTokenizer()
V = BYTES.vocab_size
SMALL: dict[str, Any] = {"vocab_size": V, "num_hidden_layers": 2, "first_k_dense_replace": 1}
KINDS: dict[str, dict[str, Any]] = {"k2": SMALL, "linear": SMALL | LINEAR | {"num_hidden_layers": 3}}
ALL = KINDS | {"gqa": SMALL | GQA}


@pytest.fixture(params=["native", "plain"])
def step(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each implementation of the decode step."""
    if request.param == "native" and library("decode") is None:
        pytest.skip("no native step")
    with force("decode_step", request.param):
        yield request.param


def prompts(draw: random.Random, count: int, longest: int = 60) -> list[tuple[int, ...]]:
    """Some begin as others do, some are equal, some have nothing in common."""
    base = [draw.randrange(V) for _ in range(longest)]
    out: list[tuple[int, ...]] = []
    for _ in range(count):
        kept = draw.choice((0, 7, 8, 16, 20, 33, longest - 8))
        own = [draw.randrange(V) for _ in range(draw.randrange(1, 9))]
        out.append(draw.choice(out) if out and draw.random() < 0.2 else (*base[:kept], *own))
    return out


def requests(draw: random.Random, count: int, longest: int = 60) -> list[Request]:
    """Of all kinds of settings."""
    return [
        Request(
            prompt,
            SamplingParams(
                max_new_tokens=draw.randrange(1, 9),
                temperature=draw.choice((0.0, 0.7, 1.0, 1.5)),
                top_k=draw.choice((0, 0, 5)),
                top_p=draw.choice((1.0, 1.0, 0.8)),
                repetition_penalty=draw.choice((1.0, 1.0, 1.3)),
                seed=draw.randrange(3),
            ),
            ends=frozenset(draw.sample(range(V), draw.choice((0, 20)))),
        )
        for prompt in prompts(draw, count, longest)
    ]


@dataclass
class Got:
    """What an engine said of one request."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    last: Event | None = None


def run(
    engine: Engine, asked: Sequence[Request], draw: random.Random | None = None, cancel: float = 0.0
) -> dict[int, Got]:
    """All of them, arriving at any time where `draw` is given; some are cancelled at any time."""
    left, got, places = list(range(len(asked))), {i: Got() for i in range(len(asked))}, {}
    while left or not engine.idle:
        for _ in range(len(left) if draw is None else draw.randrange(3)):
            if left:
                place = left.pop(0)
                places[engine.submit(asked[place])] = place
        if draw is not None and places and draw.random() < cancel:
            engine.cancel(draw.choice([*places][-8:]))
        for event in engine.step():
            own = got[places[event.ticket]]
            assert own.last is None or own.last.finish is None, "nothing comes after the end"
            own.tokens += [] if event.token is None else [event.token]
            own.text, own.last = own.text + event.text, event
    return got


def alone(model: CausalLM, request: Request) -> tuple[list[int], str]:
    """The request through the plain loop: tokens without an end, and how it ended."""
    tokens = list(stream_ids(model, BYTES, request.prompt, request.ends, replace(request.params, stop=())))
    return (tokens[:-1], "stop") if tokens[-1] in request.ends else (tokens, "length")


def check(model: CausalLM, asked: Sequence[Request], got: dict[int, Got]) -> None:
    """Everything that was not cancelled is what it is alone; what was, is a beginning of it."""
    known: dict[Request, tuple[list[int], str]] = {}
    for i, request in enumerate(asked):
        tokens, finish = known[request] = known.get(request) or alone(model, request)
        last = got[i].last
        assert last is not None
        if last.finish == "cancelled":
            assert got[i].tokens == tokens[: len(got[i].tokens)]
        else:
            assert (got[i].tokens, last.finish) == (tokens, finish)


def check_all_free(engine: Engine) -> Stats:
    """Nobody holds a slot or a block, but for the store; and not even that once it is emptied."""
    stats = engine.stats()
    assert (stats.live, stats.waiting, stats.held_blocks, stats.free_slots) == (0, 0, 0, stats.slots)
    engine.clear_prefixes()
    emptied = engine.stats()
    assert (emptied.free_blocks, emptied.cached_tokens) == (emptied.blocks, 0)
    return stats


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_250_cases_in_any_company_are_what_each_is_alone(tiny_model: Make, changes: dict[str, Any]) -> None:
    model, reused, cases, draw = tiny_model(**changes), 0, 0, random.Random(7)
    asked: list[Request] = []
    while cases < 250:
        slots = draw.randrange(2, 17)
        engine = Engine(
            model,
            BYTES,
            slots=slots,
            tokens=draw.choice((96, 200, 1000)),
            block=draw.choice((4, 8, 16)),
            reuse_prefixes=draw.random() < 0.6,
            prefill_chunk=draw.choice((1, 5, 16, 64)),
            snapshots=draw.choice((1, 4, 40)),
        )
        # Some have been asked before, of another engine in another company.
        some = requests(draw, draw.randrange(slots, 3 * slots)) + draw.sample(asked, min(len(asked), 4))
        check(model, some, run(engine, some, draw))
        stats = check_all_free(engine)
        reused, cases, asked = reused + stats.reused_tokens, cases + len(some), asked + some
    assert reused > 500


@pytest.mark.parametrize("changes", ALL.values(), ids=ALL)
def test_each_step_reads_and_decodes_blocks_as_it_would_without(
    tiny_model: Make, step: str, changes: dict[str, Any]
) -> None:
    draw, model = random.Random(3), tiny_model(**changes)
    asked = requests(draw, 8)
    for reuse in (False, True):
        engine = Engine(model, BYTES, slots=3, tokens=256, block=8, reuse_prefixes=reuse, poison=True, prefill_chunk=9)
        check(model, asked, run(engine, asked, draw))
        check_all_free(engine)


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_500_mixed_requests_with_aborts_in_poisoned_memory(tiny_model: Make, changes: dict[str, Any]) -> None:
    draw, model = random.Random(11), tiny_model(**changes)
    pool = requests(draw, 60)
    asked = [draw.choice(pool) for _ in range(500)]
    engine = Engine(model, BYTES, slots=6, tokens=320, block=8, prefill_chunk=24, snapshots=5, poison=True)
    got = run(engine, asked, draw, cancel=0.4)
    check(model, asked, got)
    stats = check_all_free(engine)
    ends = [own.last.finish for own in got.values() if own.last is not None]
    assert 50 < ends.count("cancelled") < 250
    assert stats.finished == {finish: ends.count(finish) for finish in set(ends)}
    assert stats.reused_tokens > 1000


def test_poison_is_seen_where_somebody_reads_what_he_was_not_given(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The check of the checks: a beginning that is copied one position short, and a state that is not copied.
    draw = random.Random(2)
    for changes, name in ((KINDS["k2"], "copy_block"), (KINDS["linear"], "copy_state")):
        model = tiny_model(**changes)
        prompt = tuple(draw.randrange(V) for _ in range(21))
        asked = [Request(prompt, SamplingParams(2, 0.0)), Request((*prompt, 5, 6), SamplingParams(2, 0.0))]
        engine = Engine(model, BYTES, slots=1, tokens=64, block=8, poison=True)
        with monkeypatch.context() as patch:
            patch.setattr(f"moonlet.model.paged_cache.PagedCache.{name}", lambda *_: None)
            got = run(engine, asked)
        assert got[1].last is not None
        assert got[1].last.finish == "error"


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_long_prompts_are_read_by_the_model_in_pieces_that_may_be_shared(
    tiny_model: Make, changes: dict[str, Any], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moonlet.generate.native_step.READ_UP_TO", dict.fromkeys((torch.float32, torch.bfloat16), 12))
    for module in ("engine", "reading"):
        monkeypatch.setattr(f"moonlet.generate.{module}.PREFILL_CHUNK", 16)
    draw, model = random.Random(5), tiny_model(**changes)
    asked = requests(draw, 20)
    engine = Engine(model, BYTES, slots=4, tokens=400, block=8, prefill_chunk=10, poison=True)
    check(model, asked, run(engine, asked, draw))
    assert check_all_free(engine).reused_tokens >= 200


def test_beginnings_that_are_read_at_the_same_time_are_read_once(tiny_model: Make, step: str) -> None:
    shared = tuple(range(50, 90))
    for changes in KINDS.values():
        model = tiny_model(**changes)
        for asked, read in (
            ([Request(shared, SamplingParams(3, seed=i)) for i in range(6)], 40),
            ([Request((*shared, i, i), SamplingParams(3, seed=1)) for i in range(6)], 40 + 6 * 2),
        ):
            if step == "plain" and read > 40:
                continue  # the model's pieces are longer than these prompts
            engine = Engine(model, BYTES, slots=6, tokens=500, block=8, prefill_chunk=16)
            check(model, asked, run(engine, asked))
            stats = check_all_free(engine)
            assert (stats.read_tokens, stats.reused_tokens) == (read, 6 * len(asked[0].prompt) - read)


def test_a_chat_goes_on_where_it_ended(tiny_model: Make) -> None:
    for changes in ALL.values():
        model = tiny_model(**changes)
        engine, prompt = Engine(model, BYTES, slots=1, tokens=256, block=8), tuple(range(30, 50))
        first = run(engine, [Request(prompt, SamplingParams(10, seed=1))])[0].tokens
        after = (*prompt, *first, 7, 8, 9)
        asked = [Request(after, SamplingParams(5, seed=1))]
        check(model, asked, run(engine, asked))
        # All but the last token drawn, which was never fed, and the three new ones.
        assert engine.stats().reused_tokens == len(prompt) + 9


def test_with_states_a_beginning_is_gone_on_from_where_prompts_have_parted(tiny_model: Make) -> None:
    model, shared = tiny_model(**KINDS["linear"]), tuple(range(50, 90))
    engine = Engine(model, BYTES, slots=1, tokens=500, block=8)
    reused = []
    for i in range(4):
        asked = [Request((*shared, i, i, i), SamplingParams(2, seed=1))]
        check(model, asked, run(engine, asked))
        reused.append(engine.stats().reused_tokens - sum(reused))
    assert reused == [0, 0, 40, 40]


def test_least_recently_used_beginnings_go_first(tiny_model: Make) -> None:
    model = tiny_model(**KINDS["k2"])
    engine = Engine(model, BYTES, slots=1, tokens=72, block=8)
    old, used, new = ([*range(first, first + 16), 1] for first in (10, 40, 70))

    def reused(prompt: list[int]) -> int:
        before = engine.stats().reused_tokens
        run(engine, [Request(tuple(prompt), SamplingParams(1))])
        return engine.stats().reused_tokens - before

    assert [reused(prompt) for prompt in (used, old, used, new, [*range(100, 116), 1])] == [0, 0, 17, 0, 0]
    assert reused(used) == 17
    assert reused(old) == 0


def test_a_request_waits_for_blocks_and_none_overtakes_it(tiny_model: Make) -> None:
    engine = Engine(tiny_model(**KINDS["k2"]), BYTES, slots=4, tokens=64, block=8, reuse_prefixes=False)
    for length, new in ((20, 20), (30, 10), (2, 2)):
        engine.submit(Request(tuple(range(length)), SamplingParams(new, 0.0)))
    order = []
    while not engine.idle:
        order += [event.ticket for event in engine.step() if event.finish]
        assert engine.stats().live <= 2
    assert order == [0, 2, 1]


def test_live_texts_go_on_while_a_long_prompt_is_read(tiny_model: Make, step: str) -> None:
    engine = Engine(tiny_model(**KINDS["k2"]), BYTES, slots=2, tokens=300, block=8, prefill_chunk=4)
    first = engine.submit(Request((1, 2), SamplingParams(40, 0.0)))
    assert [event.ticket for event in engine.step()] == [first]
    second = engine.submit(Request(tuple(range(20)), SamplingParams(2, 0.0)))
    seen = [event.ticket for _ in range(5) for event in engine.step()]
    assert seen.count(first) == 5
    assert seen.count(second) == (1 if step == "native" else 2)  # PyTorch reads so short a prompt in one piece


def test_texts_stop_strings_and_ends(tiny_model: Make) -> None:
    model = tiny_model(**KINDS["k2"])
    params = SamplingParams(40, 1.0, seed=5)
    engine = Engine(model, BYTES, slots=4)
    whole = run(engine, [Request((5, 80), params)])[0]
    stream = TextStream(BYTES, before=(5, 80))
    assert whole.text == "".join(map(stream.push, whole.tokens)) + stream.finish()
    stop = whole.text[3:6]
    at = whole.text.index(stop)
    end = whole.tokens[7]
    asked = [
        Request((5, 80), replace(params, stop=(stop, "never there"))),
        Request((5, 80), params, ends=frozenset({end})),
        Request((5, 80), params),
        Request((5, 80), params, skip_special=False),
    ]
    stopped, ended, untouched, shown = run(engine, asked).values()
    assert stopped.last is not None
    assert (stopped.text, stopped.last.finish) == (whole.text[:at], "stop")
    assert ended.last is not None
    assert (ended.last.token, ended.last.finish) == (None, "stop")
    assert ended.tokens == whole.tokens[: whole.tokens.index(end)]
    assert untouched.tokens == shown.tokens == whole.tokens
    assert shown.text == BYTES.decode(whole.tokens)


def test_repeats_of_a_prompt_draw_numbers_of_their_own(tiny_model: Make) -> None:
    engine = Engine(tiny_model(**KINDS["linear"]), BYTES, slots=3)
    params = SamplingParams(12, 1.0, seed=3)
    got = run(engine, [Request((1, 2, 3), params, repeat=i % 4) for i in range(8)])
    texts = [tuple(own.tokens) for own in got.values()]
    assert len(set(texts[:4])) == 4
    assert texts[:4] == texts[4:]


def test_logprobs_are_those_of_the_text_alone(tiny_model: Make) -> None:
    engine = Engine(tiny_model(**KINDS["k2"]), BYTES, slots=3)
    params = SamplingParams(4, 1.0, seed=3, logprobs=2)
    told: dict[int, list[Any]] = {}
    for i in range(3):
        engine.submit(Request((1, 2, i), params))
    while not engine.idle:
        for event in engine.step():
            told.setdefault(event.ticket, []).append((event.drawn, event.likely))
            assert event.drawn is not None
            assert event.drawn.token == event.token
            assert len(event.likely) == 2
    own = engine.submit(Request((1, 2, 1), params))
    again = [(event.drawn, event.likely) for _ in range(4) for event in engine.step() if event.ticket == own]
    assert again == told[1]


def test_a_row_of_nan_ends_its_request_and_no_other(tiny_model: Make) -> None:
    for changes in KINDS.values():
        model = tiny_model(**changes)
        with torch.no_grad():
            model.model.embed_tokens.weight[9] = float("nan")
        asked = [Request((1, 2, 3), SamplingParams(6, 0.0, logit_bias={9: -100.0})) for _ in range(3)]
        asked[1] = replace(asked[1], prompt=(1, 2, 9))
        engine = Engine(model, BYTES, slots=3, poison=True)
        got = run(engine, asked)
        assert got[1].last is not None
        assert got[1].last.finish == "error"
        assert "not finite" in (got[1].last.error or "")
        check(model, [asked[0], asked[2]], {0: got[0], 1: got[2]})
        check_all_free(engine)


def test_cancel_at_any_time_frees_everything_at_once(tiny_model: Make) -> None:
    engine = Engine(tiny_model(**KINDS["linear"]), BYTES, slots=2, tokens=128, block=8, prefill_chunk=4)
    tickets = [engine.submit(Request(tuple(range(20)), SamplingParams(20, 0.0))) for _ in range(4)]
    engine.cancel(tickets[3])  # before anything
    engine.step()
    engine.cancel(tickets[0])  # while it is read, and the next one waits for it
    engine.cancel(tickets[2])  # while it waits for a slot
    assert engine.stats().live == 1
    ended = {event.ticket: event.finish for event in engine.step() if event.finish}
    assert ended == {tickets[0]: "cancelled", tickets[2]: "cancelled"}
    while engine.stats().drawn_tokens < 3:
        engine.step()
    engine.cancel(tickets[1])
    engine.cancel(tickets[1])  # again: nothing
    engine.cancel(12345)
    assert (engine.stats().held_blocks, engine.stats().free_slots, engine.idle) == (0, 2, False)
    assert [event.finish for event in engine.step()] == ["cancelled"]
    assert engine.idle
    check_all_free(engine)


def test_prefixes_may_be_cleared_at_any_time(tiny_model: Make) -> None:
    draw, model = random.Random(4), tiny_model(**KINDS["linear"])
    asked = requests(draw, 12)
    engine = Engine(model, BYTES, slots=4, tokens=300, block=8, prefill_chunk=8, poison=True)
    places = {engine.submit(request): i for i, request in enumerate(asked)}
    got: dict[int, list[int]] = {i: [] for i in range(12)}
    while not engine.idle:
        for event in engine.step():
            got[places[event.ticket]] += [] if event.token is None else [event.token]
        if draw.random() < 0.3:
            engine.clear_prefixes()
    assert [got[i] for i in range(12)] == [alone(model, request)[0] for request in asked]
    check_all_free(engine)


def test_dynamic_rope_beyond_the_trained_length(tiny_model: Make) -> None:
    model = tiny_model(**SMALL, rope_scaling=RopeScaling(8.0, type="dynamic"), max_position_embeddings=24)
    asked = requests(random.Random(6), 16)
    engine = Engine(model, BYTES, slots=4, tokens=400, block=8)
    check(model, asked, run(engine, asked))


def test_bf16(tiny_model: Make) -> None:
    for changes in ALL.values():
        model = tiny_model(**changes).bfloat16()
        asked = requests(random.Random(8), 10)
        engine = Engine(model, BYTES, slots=4, tokens=400, block=8, prefill_chunk=7, poison=True)
        check(model, asked, run(engine, asked))


def test_what_can_never_be_answered_is_refused_with_both_numbers(tiny_model: Make) -> None:
    model = tiny_model(**KINDS["k2"])
    engine = Engine(model, BYTES, slots=2, tokens=64, block=8)
    for request, problem in (
        (Request(()), "the prompt is empty"),
        (Request((1, V)), rf"token {V}; .* 0\.\.{V - 1}"),
        (Request((1, -1)), "token -1"),
        (Request((1,) * 60, SamplingParams(5)), "takes 65, and the cache has room for 64 tokens"),
        (Request((1,) * 60, SamplingParams(600)), "takes 660, and the model has 512 positions"),
        (Request((1,), SamplingParams(5, logit_bias={V: 1.0})), "logit_bias names token"),
    ):
        with pytest.raises(ValueError, match=problem):
            engine.submit(request)
    assert engine.idle
    asked = [Request((1,) * 60, SamplingParams(4, 0.0))]
    check(model, asked, run(engine, asked))  # 64 exactly


def test_sizes_that_cannot_be_are_refused(tiny_model: Make) -> None:
    model = tiny_model(**KINDS["k2"])
    for name in ("slots", "tokens", "block", "prefill_chunk", "snapshots"):
        with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
            Engine(model, BYTES, **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="room for 8 tokens and a block for 32"):
        Engine(model, BYTES, tokens=8)
    with pytest.raises(ValueError, match=f"the tokenizer has {V} tokens and the model 61"):
        Engine(tiny_model(), BYTES)


def test_there_is_room_for_all_the_tokens_asked_for(tiny_model: Make) -> None:
    model = tiny_model(**KINDS["k2"])
    engine = Engine(model, BYTES, slots=2, tokens=61, block=8)  # of which no number of blocks is
    asked = [Request((1,) * 57, SamplingParams(4, 0.0))]
    check(model, asked, run(engine, asked))


def test_closing_ends_everything(tiny_model: Make) -> None:
    engine = Engine(tiny_model(**KINDS["linear"]), BYTES, slots=2)
    for _ in range(4):
        engine.submit(Request((1, 2, 3), SamplingParams(9)))
    engine.step()
    engine.close()
    assert engine.idle
    assert engine.stats().finished == {"cancelled": 4}
    check_all_free(engine)


def test_mode_and_router_counts_are_left_as_they_were(tiny_model: Make, step: str) -> None:
    model = tiny_model(**KINDS["k2"]).train()
    run(Engine(model, BYTES, slots=2), requests(random.Random(1), 3))
    assert all(m.training for m in model.modules())
    assert all(int(m.load.sum()) == 0 for m in model.modules() if hasattr(m, "load"))
