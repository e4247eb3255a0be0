"""The native step is CausalLM.last_logits for one token, and a row's logits are its own to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from moonlet.config import RopeScaling
from moonlet.config.linear_attention import LinearAttention
from moonlet.generate.decoding import is_native, lay_out, new_step
from moonlet.generate.native_step import NativeStep, why_not_native
from moonlet.generate.step import Step
from moonlet.model.cache import Cache, DeltaCache, KeyValueCache, LatentCache
from moonlet.model.model import CausalLM
from moonlet.ops.dispatch import force
from moonlet.ops.native import library, why_not
from tests.conftest import GQA, HYBRID, LINEAR

Make = Callable[..., CausalLM]

pytestmark = pytest.mark.skipif(library("decode") is None, reason=why_not("decode"))

YARN = RopeScaling(4.0, 64, 8.0, 1.0, 1.0, 1.0)
KINDS: dict[str, dict[str, Any]] = {
    "mla": {},
    "query without latent": {"q_lora_rank": None},
    "no shared expert": {"n_shared_experts": 0},
    "shares not normalised": {"n_shared_experts": 2, "norm_topk_prob": False, "routed_scaling_factor": 2.5},
    "groups": {"n_group": 4, "topk_group": 2},
    "dense": {"n_routed_experts": 0},
    "another eps": {"first_k_dense_replace": 0, "rms_norm_eps": 1e-2},
    "yarn": {"rope_scaling": YARN},
    "linear scaling": {"rope_scaling": RopeScaling(4.0, type="linear")},
    "dynamic scaling": {"rope_scaling": RopeScaling(8.0, type="dynamic"), "max_position_embeddings": 10},
    "softmax, tied": {"scoring_func": "softmax", "moe_layer_freq": 2, "tie_word_embeddings": True},
    "widths of whole vectors": {"hidden_size": 64, "kv_lora_rank": 80, "intermediate_size": 128, "v_head_dim": 16},
    "gqa": GQA,
    "gqa, part turned": GQA | {"head_dim": 16, "partial_rotary_factor": 0.5, "rope_scaling": YARN},
    "one group, tied": GQA | {"num_key_value_heads": 1, "n_routed_experts": 0, "tie_word_embeddings": True},
    "hybrid": HYBRID,
    "hybrid, two taps": LINEAR | {"q_lora_rank": 28, "linear_attn_config": LinearAttention(18, 2, (1, 3), 2)},
    "kda alone": HYBRID | {"num_hidden_layers": 2, "linear_attn_config": LinearAttention(8, 2, (1, 2), 1)},
    "hybrid with rope": HYBRID | {"mla_use_nope": False, "linear_attn_config": LinearAttention(5, 3, (2, 3), 6)},
}
MIXERS = {"mla": {}, "gqa": GQA, "hybrid": HYBRID}


def prefilled(model: CausalLM, lengths: list[int], poison: bool = False) -> Cache:
    """A cache of these lengths; with `poison` what lies behind them is NaN, and the states of empty rows too."""
    cache = model.new_cache(len(lengths), model.config.context_limit if model.config.context_limit < 300 else 300)
    generator = torch.Generator().manual_seed(5)
    for i, n in enumerate(lengths):
        if n:
            with torch.no_grad():
                model.hidden(torch.randint(61, (1, n), generator=generator), cache.rows(i, i + 1))
        for layer in cache.layers if poison else ():
            if isinstance(layer, LatentCache):
                layer.entries[i, n:] = float("nan")
            elif isinstance(layer, KeyValueCache):
                layer.entries[:, i, :, n:] = float("nan")
            elif isinstance(layer, DeltaCache) and not n:
                layer.state[i] = layer.inputs[i] = float("nan")
    return cache


def tensors(cache: Cache) -> list[Tensor]:
    return [t for layer in cache.layers for t in vars(layer).values() if isinstance(t, Tensor) and t.numel()]


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def last_logits(model: CausalLM, tokens: Tensor, cache: Cache) -> Tensor:
    with torch.no_grad():
        return model.last_logits(tokens[:, None], cache)


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("lengths", [[9], [0, 9, 3, 12, 0, 1, 9]], ids=str)
def test_step_equals_the_model(tiny_model: Make, changes: dict[str, Any], lengths: list[int]) -> None:
    model = tiny_model(**changes)
    ours, law, step = prefilled(model, lengths), prefilled(model, lengths), NativeStep(model)
    places = [t.data_ptr() for t in tensors(ours)]
    for n in range(4):
        tokens = torch.arange(len(lengths)) + n
        got, want = step(tokens, ours), last_logits(model, tokens, law)
        assert got.dtype == torch.float32
        assert relative(got, want) <= 1e-5
    assert ours.lengths.tolist() == law.lengths.tolist()
    for a, b in zip(tensors(ours), tensors(law), strict=True):
        assert relative(a, b) <= 1e-5
    assert [t.data_ptr() for t in tensors(ours)] == places


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """So many threads, also for the smallest model."""
    monkeypatch.setattr("moonlet.generate.native_step._BYTES_A_THREAD", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("changes", MIXERS.values(), ids=MIXERS)
def test_a_rows_logits_are_its_own_to_the_bit(
    tiny_model: Make, dtype: torch.dtype, changes: dict[str, Any], threads: int
) -> None:
    model = tiny_model(**changes).to(dtype)
    for lengths in ([3, 12, 0, 3, 9], [4, 1]):
        tokens, step = torch.arange(len(lengths)), NativeStep(model)
        together, alone = prefilled(model, lengths, poison=True), prefilled(model, lengths)
        # Every second row in a cache of its own: rows of one that is longer have strides of their own.
        lone = [alone.rows(i, i + 1) if i % 2 else alone.keep([i]) for i in range(len(lengths))]
        for _ in range(3):
            torch.set_num_threads(1)
            rows = [step(tokens[i : i + 1], lone[i]) for i in range(len(lengths))]
            torch.set_num_threads(threads)
            got = step(tokens, together)
            assert torch.equal(got, torch.cat(rows))
            tokens = got.argmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("changes", MIXERS.values(), ids=MIXERS)
def test_texts_read_at_once_are_read_token_by_token(
    tiny_model: Make, dtype: torch.dtype, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moonlet.generate.native_step._ROWS_AT_ONCE", 7)
    model = tiny_model(**changes).to(dtype)
    texts, step = [[5, 4, 3, 2, 1], [7], list(range(20)), [9, 9]], NativeStep(model)
    cache = model.new_cache(4, 30)
    for layer in cache.layers:
        for tensor in vars(layer).values():
            if tensor is not None:
                tensor.fill_(float("nan"))
    together = step.read(texts, cache)
    assert cache.lengths.tolist() == [5, 1, 20, 2]
    after = step(torch.arange(4), cache)
    for i, text in enumerate(texts):
        alone = model.new_cache(1, 30)
        for token in text:
            logits = step(torch.tensor([token]), alone)
        assert torch.equal(logits[0], together[i])
        assert torch.equal(step(torch.tensor([i]), alone)[0], after[i])


@pytest.mark.parametrize("changes", MIXERS.values(), ids=MIXERS)
def test_200_tokens_on_it_is_still_the_model(tiny_model: Make, changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    lengths, step = [5, 40, 0], NativeStep(model)
    ours, law = prefilled(model, lengths), prefilled(model, lengths)
    tokens = torch.tensor([1, 2, 3])
    for _ in range(200):
        got, want = step(tokens, ours), last_logits(model, tokens, law)
        tokens = want.argmax(-1)
    assert relative(got, want) <= 2e-5


@pytest.mark.parametrize("changes", MIXERS.values(), ids=MIXERS)
def test_in_bf16_it_is_nearer_to_the_truth_than_pytorch(tiny_model: Make, changes: dict[str, Any]) -> None:
    # Without experts: where two tie in bf16 another is chosen, and then nothing is near.
    model = tiny_model(**changes, n_routed_experts=0).bfloat16()
    exact = tiny_model(**changes, n_routed_experts=0)
    exact.load_state_dict(model.state_dict())
    exact.double()

    def read(step: Callable[[Tensor, Cache], Tensor], model: CausalLM) -> Tensor:
        cache, tokens = model.new_cache(3, 20), torch.tensor([1, 2, 3])
        return torch.stack([step(tokens + n, cache).double() for n in range(10)])

    truth = read(lambda tokens, cache: last_logits(exact, tokens, cache), exact)
    ours, theirs = (
        float((read(step, model) - truth).norm() / truth.norm()) for step in (NativeStep(model), Step(model))
    )
    assert ours <= 0.7 * theirs


def test_bf16_weights_in_a_model_that_computes_in_fp32_and_the_other_way(tiny_model: Make) -> None:
    for weights, compute in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        model = tiny_model(**HYBRID).to(weights)
        model.compute_dtype = compute
        ours, law = prefilled(model, [4, 7]), prefilled(model, [4, 7])
        tokens = torch.tensor([1, 2])
        tolerance = 1e-5 if compute == torch.float32 else 0.1
        assert relative(NativeStep(model)(tokens, ours), last_logits(model, tokens, law).float()) <= tolerance


def test_of_equal_experts_and_groups_the_first_are_taken(tiny_model: Make) -> None:
    for changes in ({}, {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}, {"scoring_func": "softmax"}):
        model = tiny_model(**changes)
        for layer in model.model.layers[1:]:
            with torch.no_grad():
                layer.mlp.gate.weight[:] = layer.mlp.gate.weight[0]
                layer.mlp.gate.e_score_correction_bias.zero_()
        ours, law = prefilled(model, [4, 7]), prefilled(model, [4, 7])
        tokens = torch.tensor([1, 2])
        assert relative(NativeStep(model)(tokens, ours), last_logits(model, tokens, law)) <= 1e-5


def test_nan_is_seen_in_the_logits_of_its_row_alone(tiny_model: Make) -> None:
    for name in ("model.layers.1.mlp.gate.weight", "model.layers.0.self_attn.o_proj.weight", "model.norm.weight"):
        model = tiny_model()
        with torch.no_grad():
            model.get_parameter(name)[..., 0] = float("nan")
        assert not NativeStep(model)(torch.tensor([1]), prefilled(model, [0])).isfinite().any()
    model, lengths = tiny_model(), [3, 4, 5]
    cache, want = prefilled(model, lengths), prefilled(model, lengths)
    cache.layers[0].entries[1, 2] = float("nan")
    tokens, step = torch.tensor([1, 2, 3]), NativeStep(model)
    got = step(tokens, cache)
    assert got[1].isnan().all()
    assert torch.equal(got[[0, 2]], step(tokens, want)[[0, 2]])


def test_more_rows_than_at_first_and_another_cache(tiny_model: Make) -> None:
    model = tiny_model()
    step = NativeStep(model)
    for lengths in ([2], [5, 6, 7, 8], [30], [4, 4]):
        ours, law = prefilled(model, lengths), prefilled(model, lengths)
        tokens = torch.arange(len(lengths))
        assert relative(step(tokens, ours), last_logits(model, tokens, law)) <= 1e-5


def test_weights_by_columns_are_read_rightly(tiny_model: Make) -> None:
    model = tiny_model()
    with force("decode_step", "plain"):
        lay_out(model)
    tokens = torch.tensor([1])
    got = NativeStep(model)(tokens, prefilled(model, [5]))
    assert relative(got, last_logits(model, tokens, prefilled(model, [5]))) <= 1e-5


def test_laying_out_for_the_native_step_moves_nothing(tiny_model: Make) -> None:
    model = tiny_model()
    places = {name: (p.data_ptr(), p.stride()) for name, p in model.named_parameters()}
    lay_out(model)
    assert {name: (p.data_ptr(), p.stride()) for name, p in model.named_parameters()} == places


def test_a_changed_weight_is_seen_by_the_next_call(tiny_model: Make) -> None:
    model = tiny_model()
    step, tokens = NativeStep(model), torch.tensor([1])
    before = step(tokens, prefilled(model, [5]))
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert torch.equal(step(tokens, prefilled(model, [5])), 2 * before)


def test_errors_a_caller_can_cause(tiny_model: Make) -> None:
    model = tiny_model()
    step, cache = NativeStep(model), model.new_cache(1, 1)
    with pytest.raises(ValueError, match="token 61 is not in the vocabulary of 61"):
        step(torch.tensor([61]), cache)
    assert cache.lengths.tolist() == [0]
    step(torch.tensor([1]), cache)
    with pytest.raises(ValueError, match="room for 1"):
        step(torch.tensor([1]), cache)


def test_who_gets_which_step(tiny_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    assert is_native(model)
    assert isinstance(new_step(model), NativeStep)
    with force("decode_step", "plain"):
        assert not is_native(model)
        step = new_step(model, exact=False)
        assert isinstance(step, Step)
        assert not step.exact
    half = tiny_model().half()
    assert why_not_native(half) == "the compute dtype is float16"
    assert isinstance(new_step(half), Step)
    with force("decode_step", "native"), pytest.raises(ValueError, match=r"decode_step=native.*float16"):
        new_step(half)
    monkeypatch.setattr("moonlet.generate.native_step.library", lambda name: None)
    monkeypatch.setattr("moonlet.generate.native_step.why_not", lambda name: "no C++ compiler")
    assert why_not_native(model) == "no C++ compiler"
    assert isinstance(new_step(model), Step)
