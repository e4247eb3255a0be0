"""The step of static shapes is the model's own forward, and no row of it knows of another."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from moonlet.config import RopeScaling
from moonlet.generate import paged_step, static_layers, static_step
from moonlet.generate.batch import Engine
from moonlet.generate.static_step import StaticStep
from moonlet.generate.step import Step
from moonlet.model.model import CausalLM
from moonlet.model.packed import pack_experts
from moonlet.model.paged_cache import PagedCache
from moonlet.ops.dispatch import force
from moonlet.ops.native import without_kernels
from moonlet.train.compile import why_not
from tests.conftest import GQA, HYBRID, LINEAR
from tests.generate.test_batch import ALL, BYTES, KINDS, check, check_all_free, requests, run

Make = Callable[..., CausalLM]

CPU = torch.device("cpu")
MIXERS: dict[str, dict[str, Any]] = {"mla": {}, "gqa": GQA, "hybrid": HYBRID}
YARN = RopeScaling(
    4.0, original_max_position_embeddings=64, beta_fast=8.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0
)
LENGTHS = [3, 140, 9, 20, 1]
"""Of five texts; the second is longer than a piece."""


@pytest.fixture(params=["kernels", "pytorch"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """With the kernels for single operations that a machine with a compiler has, and without."""
    if request.param == "kernels":
        yield request.param
    else:
        with without_kernels():
            yield request.param


class Texts:
    """Texts in a paged cache whose every other number is NaN, and each of them in a cache of its own."""

    def __init__(self, model: CausalLM, block: int = 8, texts: int = 5, seed: int = 0) -> None:
        self.model, most = model, -(-200 // block)
        self.cache = PagedCache(model, texts, texts * most, block, most, 2)
        order = torch.randperm(texts * most, generator=torch.Generator().manual_seed(seed))
        self.cache.tables.copy_(order.view(texts, most))
        self.names = list(range(texts))
        """What makes each text another one."""
        self.lengths = LENGTHS[:texts]

    def read(self) -> None:
        """Poison everything; then each text is read."""
        for block in range(self.cache.scratch):
            self.cache.poison_block(block)
        for row in range(len(self.lengths) + 2):
            self.cache.poison_state(row)
        self.own = [self.model.new_cache(1, 200) for _ in self.lengths]
        with torch.no_grad():
            for i, length in enumerate(self.lengths):
                tokens = torch.tensor([[(7 * n + self.names[i]) % 61 for n in range(length)]], device=self.model.device)
                self.model.hidden(tokens, self.own[i])
                pages = self.cache.contiguous(i, 0, length)
                self.model.hidden(tokens, pages)
                self.cache.put_back(pages, i, 0, length)

    def decode(self, step: StaticStep, live: list[int], token: int) -> tuple[Tensor, Tensor]:
        """A token for some. -> their logits, and those of the model by itself"""
        got = step([token + i for i in live], [self.lengths[i] for i in live], live)
        with torch.no_grad():
            want = [
                self.model.last_logits(torch.tensor([[token + i]], device=self.model.device), self.own[i]) for i in live
            ]
        for i in live:
            self.lengths[i] += 1
        return got, torch.cat(want).float()


def assert_equals_the_model(model: CausalLM, backend: str | None = None, block: int = 8, near: float = 1e-5) -> None:
    texts = Texts(model, block)
    step = StaticStep(model, texts.cache, backend)
    assert step.treats_rows_alike()
    texts.read()
    for token, live in enumerate(([0, 1, 2, 3, 4], [4, 2], [1], [0, 3, 1], [0, 1, 2, 3, 4])):
        got, want = texts.decode(step, live, token)
        assert ((got - want).abs().max() / want.abs().max()).item() <= near


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"q_lora_rank": None, "n_shared_experts": 0},
        {"n_shared_experts": 2, "norm_topk_prob": False},
        {"n_group": 4, "topk_group": 2, "rope_scaling": YARN},
        {"n_routed_experts": 0},
        {"n_routed_experts": 40},  # more than the rows choose: those chosen are read
        {"rope_scaling": RopeScaling(8.0, type="dynamic"), "max_position_embeddings": 30},
        {"scoring_func": "softmax", "tie_word_embeddings": True},
        GQA,
        GQA | {"num_key_value_heads": 4, "head_dim": 16, "partial_rotary_factor": 0.5},
        HYBRID,
        LINEAR,
    ],
    ids=str,
)
def test_the_step_equals_the_model_with_rows_at_rest_in_poisoned_memory(
    tiny_model: Make, changes: dict[str, Any], kernels: str
) -> None:
    assert_equals_the_model(tiny_model(**changes))


@pytest.mark.parametrize("block", [1, 3, 32, 160])
def test_blocks_of_any_size(tiny_model: Make, block: int) -> None:
    for changes in MIXERS.values():
        assert_equals_the_model(tiny_model(**changes), block=block)


@pytest.mark.parametrize("changes", MIXERS.values(), ids=MIXERS)
def test_fp64(tiny_model: Make, changes: dict[str, Any]) -> None:
    assert_equals_the_model(tiny_model(**changes).double(), near=1e-6)  # logits are given in fp32


@pytest.mark.parametrize("scheme", ["int4", "mxfp4", "fp8"])
def test_packed_experts(tiny_model: Make, scheme: Any) -> None:
    assert_equals_the_model(pack_experts(tiny_model(), scheme))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("changes", MIXERS.values(), ids=MIXERS)
def test_a_rows_bits_do_not_depend_on_other_rows_their_place_or_how_many_slots_there_are(
    tiny_model: Make, changes: dict[str, Any], dtype: torch.dtype, kernels: str
) -> None:
    model = tiny_model(**changes).to(dtype)

    def logits(slots: int, place: int, company: bool) -> list[Tensor]:
        texts = Texts(model, texts=slots, seed=slots)
        texts.names = [(i - place) % slots for i in range(slots)]
        texts.lengths = [LENGTHS[name % 5] for name in texts.names]
        step = StaticStep(model, texts.cache)
        texts.read()
        live = list(range(slots)) if company else [place]
        # The same token for the text that is looked at.
        return [texts.decode(step, live, 20 + n - place)[0][live.index(place)] for n in range(3)]

    want = logits(1, 0, False)
    for slots, place in ((5, 0), (5, 4), (11, 9)):
        for company in (False, True):
            assert all(map(torch.equal, logits(slots, place, company), want))


@pytest.mark.parametrize("changes", MIXERS.values(), ids=MIXERS)
def test_what_rests_is_left_as_it_was(tiny_model: Make, changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    texts = Texts(model)
    step = StaticStep(model, texts.cache)
    texts.read()

    def held(text: int) -> list[Tensor]:
        cache = texts.cache.contiguous(text, texts.lengths[text], 0)
        return [t[..., : texts.lengths[text], :].clone() for layer in cache.layers for t in vars(layer).values()
                if isinstance(t, Tensor)]  # fmt: skip

    before = {text: held(text) for text in (0, 1, 3)}
    for token in range(3):
        texts.decode(step, [2, 4], token)
    for text, was in before.items():
        assert all(torch.equal(a, b) for a, b in zip(held(text), was, strict=True))


@pytest.mark.parametrize("changes", MIXERS.values(), ids=MIXERS)
def test_more_pieces_than_a_row_needs_change_no_bit(tiny_model: Make, changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    found = []
    for longest in (9, 150):
        texts = Texts(model, texts=2)
        texts.lengths = [5, longest]
        step = StaticStep(model, texts.cache)
        texts.read()
        found.append(texts.decode(step, [0, 1], 3)[0][0])
    assert torch.equal(*found)


@pytest.mark.slow
def test_what_is_compiled_is_whole_shared_by_like_layers_and_equals_what_is_written(tiny_model: Make) -> None:
    import torch._dynamo as dynamo
    from torch._dynamo.utils import counters

    why_not(CPU)  # which says how many kinds there may be
    graphs = []
    for changes in (HYBRID, HYBRID | {"num_hidden_layers": 6}, GQA):
        dynamo.reset()
        counters.clear()
        assert_equals_the_model(tiny_model(**changes), "aot_eager")
        graphs.append(counters["stats"]["unique_graphs"])
    # KDA, queries, what was seen, dense, experts; a layer more of a kind costs nothing.
    assert graphs == [5, 5, 4]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [KINDS["k2"], KINDS["linear"]], ids=["k2", "linear"])
def test_the_engine_compiled_tells_each_text_as_if_it_were_alone(tiny_model: Make, changes: dict[str, Any]) -> None:
    problem = why_not(CPU)
    if problem:
        pytest.skip(problem)
    draw, model = random.Random(3), tiny_model(**changes)
    asked = requests(draw, 30)
    lone = Engine(model, BYTES, slots=1, tokens=256, block=8, reuse_prefixes=False, compile="on")
    engine = Engine(model, BYTES, slots=6, tokens=320, block=8, prefill_chunk=24, poison=True, compile="on")
    got, want = run(engine, asked, draw), run(lone, asked)
    assert [got[i].tokens for i in got] == [want[i].tokens for i in got]
    check(model, asked, got)
    check_all_free(engine)


@pytest.mark.parametrize("changes", ALL.values(), ids=ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_80_requests_with_aborts_are_to_the_bit_what_each_is_alone(
    tiny_model: Make, changes: dict[str, Any], dtype: torch.dtype
) -> None:
    draw, model = random.Random(11), tiny_model(**changes).to(dtype)
    pool = requests(draw, 20)
    asked = [draw.choice(pool) for _ in range(80)]
    with force("decode_step", "plain"):
        lone = Engine(model, BYTES, slots=4, tokens=256, block=16, reuse_prefixes=False)
        engine = Engine(model, BYTES, slots=6, tokens=320, block=8, snapshots=5, poison=True)
    alone = {request: run(lone, [request])[0] for request in pool}
    got = run(engine, asked, draw, cancel=0.4)
    check_all_free(engine)
    cancelled = 0
    for i, request in enumerate(asked):
        last, want = got[i].last, alone[request]
        assert last is not None
        if last.finish == "cancelled":
            cancelled += 1
            assert got[i].tokens == want.tokens[: len(got[i].tokens)]
        else:
            assert (got[i].tokens, got[i].text) == (want.tokens, want.text)
    assert cancelled < 60


def test_where_rows_are_not_alike_texts_are_decoded_one_after_another(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = static_layers.channels

    def uneven(layer: Any, x: Tensor) -> Tensor:
        return plain(layer, x) * torch.linspace(1, 1 + 1e-6, len(x))[:, None]

    model, told = tiny_model(**KINDS["k2"]), []
    monkeypatch.setattr(static_step, "_PLAIN", static_step.Pieces(channels=uneven))
    with force("decode_step", "plain"):
        engine = Engine(model, BYTES, slots=6, notice=told.append)
    assert isinstance(engine._forward._step, Step)
    assert told == ["texts are decoded one after another: this machine's matrix products treat rows by their place"]
    asked = requests(random.Random(5), 6)
    check(model, asked, run(engine, asked))


def test_on_is_refused_and_auto_goes_on_in_one_line_where_nothing_can_be_compiled(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, told = tiny_model(**KINDS["k2"]), []
    with pytest.raises(ValueError, match="compile is 'yes'; valid: auto, on, off"):
        Engine(model, BYTES, compile="yes")  # type: ignore[arg-type]
    monkeypatch.setattr(paged_step, "PAYS", {"cpu": True})
    monkeypatch.setattr(paged_step, "why_not", lambda device: "no C++ compiler")
    with pytest.raises(ValueError, match=r'compile is "on" .* no C\+\+ compiler; try compile="auto"'):
        Engine(model, BYTES, compile="on")
    with force("decode_step", "plain"):
        engine = Engine(model, BYTES, slots=4, notice=told.append)
        assert isinstance(Engine(model, BYTES, slots=3)._forward._step, Step)
    assert told == ["decoding is not compiled: no C++ compiler"]
    assert isinstance(engine._forward._step, StaticStep)


def test_what_a_compiler_raises_is_one_line(tiny_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_step, "why_not", lambda device: "")
    monkeypatch.setattr(paged_step, "_BACKEND", "no such backend")
    with pytest.raises(ValueError, match=r'compile is "on" .*: \w+: .*; try compile="auto"') as caught:
        Engine(tiny_model(**KINDS["k2"]), BYTES, compile="on")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("changes", ALL.values(), ids=ALL)
@pytest.mark.parametrize("compile", ["on", "off"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_each_text_is_what_it_is_alone(
    tiny_model: Make, changes: dict[str, Any], compile: Any, dtype: torch.dtype
) -> None:
    model = tiny_model(**changes).to("cuda", dtype)
    asked = requests(random.Random(9), 24)
    lone = Engine(model, BYTES, slots=6, tokens=320, block=8, reuse_prefixes=False, compile=compile)
    engine = Engine(model, BYTES, slots=6, tokens=320, block=8, poison=True, compile=compile)
    assert isinstance(engine._forward._step, StaticStep)
    want = [run(lone, [request])[0].tokens for request in asked]
    got = run(engine, asked, random.Random(1), cancel=0.0)
    assert [got[i].tokens for i in got] == want
    check_all_free(engine)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("changes", MIXERS.values(), ids=MIXERS)
@pytest.mark.parametrize("backend", [None, "inductor"])
def test_on_a_gpu_the_step_equals_the_model(tiny_model: Make, changes: dict[str, Any], backend: str | None) -> None:
    assert_equals_the_model(tiny_model(**changes).cuda(), backend, near=1e-4)
