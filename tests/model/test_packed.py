"""A model whose experts are packed is its dequantised twin, and nothing that moves or casts it touches its codes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moonlet.config import ModelConfig
from moonlet.generate import SamplingParams, complete
from moonlet.generate.decoding import is_native, lay_out, new_step
from moonlet.generate.native_step import NativeStep, why_not_native
from moonlet.generate.step import Step
from moonlet.model.init import build
from moonlet.model.model import CausalLM
from moonlet.model.packed import PackedExperts, pack_experts, packed_scheme, unpack_experts
from moonlet.ops.dispatch import force
from moonlet.ops.low_bit_codes import SCHEMES, Scheme
from moonlet.ops.native import library, without_kernels
from moonlet.text.byte import ByteTokenizer
from tests.conftest import HYBRID

Make = Callable[..., CausalLM]

# Widths that fill no word, no group and no block; and those that fill some of each.
KINDS: dict[str, dict[str, Any]] = {
    "odd": {"moe_intermediate_size": 35},
    "blocks": {"hidden_size": 160, "moe_intermediate_size": 136, "n_shared_experts": 0},
    "hybrid": HYBRID,
}
needs_kernels = pytest.mark.skipif(library("decode") is None, reason="no compiler")


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> Scheme:
    scheme: Scheme = request.param
    return scheme


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def pair(request: pytest.FixtureRequest, scheme: Scheme, tiny_model: Make) -> tuple[CausalLM, CausalLM]:
    """A model with packed experts, and its twin with the weights that the codes stand for."""
    packed = pack_experts(tiny_model(**request.param), scheme)
    return packed, unpack_experts(copy.deepcopy(packed))


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.float() - b.float()).abs().max() / b.float().abs().max()).item()


def stacks(model: CausalLM) -> list[PackedExperts]:
    return [module for module in model.modules() if isinstance(module, PackedExperts)]


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_logits_are_the_twins(pair: tuple[CausalLM, CausalLM]) -> None:
    packed, twin = pair
    assert relative(packed(drawn(3, 40)), twin(drawn(3, 40))) <= 3e-6
    with without_kernels():
        assert relative(packed(drawn(3, 40)), twin(drawn(3, 40))) <= 3e-6


@torch.no_grad()
def test_with_a_cache_as_without(pair: tuple[CausalLM, CausalLM]) -> None:
    packed, twin = pair
    tokens, cache = drawn(2, 30), packed.new_cache(2, 30)
    parts = [packed(part, cache) for part in tokens.split([11, 1, 18], 1)]
    assert relative(torch.cat(parts, 1), twin(tokens)) <= 1e-5


def test_decode_steps_are_the_twins(pair: tuple[CausalLM, CausalLM]) -> None:
    packed, twin = pair
    steps = [Step(packed), *([] if why_not_native(packed) else [NativeStep(packed)])]
    for step in steps:
        ours, theirs, law = packed.new_cache(3, 12), twin.new_cache(3, 12), Step(twin)
        for n in range(12):
            assert relative(step(drawn(3, seed=n), ours), law(drawn(3, seed=n), theirs)) <= 1e-5


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_rows_logits_are_its_own_to_the_bit_on_any_number_of_threads(
    pair: tuple[CausalLM, CausalLM], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pair[0].to(dtype)
    if why_not_native(model):
        pytest.skip(why_not_native(model))
    monkeypatch.setattr("moonlet.generate.native_step._BYTES_A_THREAD", 1)
    step, before = NativeStep(model), torch.get_num_threads()
    texts = [[5, 4, 3, 2, 1], [7], list(range(9)), [9, 9]]
    together = step.read(texts, model.new_cache(4, 9))
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for i, text in enumerate(texts):
                cache = model.new_cache(1, 9)
                for token in text:
                    logits = step(torch.tensor([token]), cache)
                assert torch.equal(logits[0], together[i])
    finally:
        torch.set_num_threads(before)


def test_generating_with_either_step_gives_the_same_text(tiny_model: Make) -> None:
    model, tokenizer = tiny_model(vocab_size=272), ByteTokenizer()
    pack_experts(model)
    lay_out(model)
    greedy = SamplingParams(max_new_tokens=12, temperature=0.0)
    texts = complete(model, tokenizer, ["ab", "cde"], greedy)
    with without_kernels(), force("decode_step", "plain"):
        assert not is_native(model)
        assert complete(model, tokenizer, ["ab", "cde"], greedy) == texts


def test_only_four_bits_have_a_native_step(tiny_model: Make) -> None:
    model = pack_experts(tiny_model(), "fp8")
    assert why_not_native(model) == "its experts are packed as fp8"
    assert isinstance(new_step(model), Step)


@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m.to(torch.bfloat16),
        lambda m: m.half().float(),
        lambda m: m.double(),
        lambda m: m.to("cpu", torch.float16),
        copy.deepcopy,
    ],
    ids=["to", "half", "double", "to both", "deepcopy"],
)
def test_casting_a_model_leaves_codes_and_scales(
    convert: Callable[[CausalLM], CausalLM], scheme: Scheme, tiny_model: Make
) -> None:
    model = pack_experts(tiny_model(), scheme)
    before = [(b.clone().view(torch.uint8), b.dtype) for m in stacks(model) for b in m.buffers()]
    model = convert(model)
    after = [b for m in stacks(model) for b in m.buffers()]
    assert all(
        torch.equal(bits, b.view(torch.uint8)) and b.dtype == d for (bits, d), b in zip(before, after, strict=True)
    )


def test_a_model_without_memory_is_packed_filled_and_the_same(scheme: Scheme, tiny_model: Make) -> None:
    model = pack_experts(tiny_model(), scheme)
    shapes = pack_experts(build(model.config, device="meta"), scheme).bfloat16()
    assert {m.down_packed.device.type for m in stacks(shapes)} == {"meta"}
    assert packed_scheme(shapes) == scheme
    filled = shapes.to_empty(device="cpu").float().eval()
    filled.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(filled(drawn(2, 9)), model(drawn(2, 9)))


def test_four_bits_take_four_and_a_half_bits_of_memory(tiny_config: Callable[..., ModelConfig]) -> None:
    with torch.device("meta"):
        model = pack_experts(CausalLM(tiny_config(hidden_size=128, moe_intermediate_size=64)))
    weights = 8 * 3 * 128 * 64
    assert all(sum(b.nbytes for b in m.buffers()) == weights * 4.5 / 8 for m in stacks(model))
    assert not any(p.numel() >= weights for p in model.parameters())


def test_packing_frees_the_weights_and_keeps_what_is_packed(tiny_model: Make) -> None:
    model = tiny_model()
    names = set(model.state_dict())
    pack_experts(model)
    assert not any(name.endswith("experts.down_proj") for name in model.state_dict())
    first = stacks(model)
    assert stacks(pack_experts(model, "mxfp4")) == first
    unpack_experts(model)
    assert set(model.state_dict()) == names
    assert packed_scheme(model) is None


def test_what_cannot_be_packed(tiny_model: Make) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=r"no scheme 'int3' for packed experts; valid: int4, mxfp4, fp8"):
        pack_experts(model, "int3")  # type: ignore[arg-type]
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[2, 3] = float("inf")
    with pytest.raises(ValueError, match="NaN or infinity"):
        pack_experts(model)


def test_training_says_in_one_line_that_packed_weights_cannot_be(tiny_model: Make) -> None:
    model = pack_experts(tiny_model()).train()
    loss = model.loss(drawn(2, 9), drawn(2, 9))
    with pytest.raises(ValueError, match="packed weights cannot be trained: load the model dequantised") as raised:
        loss.backward()
    assert "\n" not in str(raised.value)
    unpack_experts(model).loss(drawn(2, 9), drawn(2, 9)).backward()
