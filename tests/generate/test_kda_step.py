"""The decode step of hybrids is CausalLM.last_logits for one token, in place, in any row and at any length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moonlet.config.linear_attention import LinearAttention
from moonlet.generate.decoding import lay_out
from moonlet.generate.engine import generate
from moonlet.generate.step import Step
from moonlet.model.cache import Cache, DeltaCache
from moonlet.model.model import CausalLM
from moonlet.ops.dispatch import force
from moonlet.text import ByteTokenizer
from tests.conftest import HYBRID

Make = Callable[..., CausalLM]

KINDS: dict[str, dict[str, Any]] = {
    "hybrid": HYBRID,
    "query latent": HYBRID | {"q_lora_rank": 28, "n_routed_experts": 0},
    "kda alone": HYBRID | {"num_hidden_layers": 2, "linear_attn_config": LinearAttention(8, 2, (1, 2), 1)},
    "with rope": HYBRID | {"mla_use_nope": False, "linear_attn_config": LinearAttention(5, 3, (2, 3), 6)},
}


def prefilled(model: CausalLM, lengths: list[int]) -> Cache:
    """A cache of these lengths; what lies in an empty row's states is NaN."""
    cache = model.new_cache(len(lengths), 64)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for i, n in enumerate(lengths):
            row = cache.rows(i, i + 1)
            if n:
                model.hidden(torch.randint(61, (1, n), generator=generator), row)
                continue
            for layer in row.layers:
                if isinstance(layer, DeltaCache):
                    layer.state.fill_(float("nan"))
                    layer.inputs.fill_(float("nan"))
    return cache


def tensors(cache: Cache) -> list[Tensor]:
    return [t for layer in cache.layers for t in vars(layer).values() if isinstance(t, Tensor) and t.numel()]


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def compare(model: CausalLM, lengths: list[int], exact: bool) -> None:
    """Two caches, one decoded by the step and one by the model."""
    ours, law, step = prefilled(model, lengths), prefilled(model, lengths), Step(model, exact)
    places = [t.data_ptr() for t in tensors(ours)]
    for n in range(5):
        tokens = torch.arange(len(lengths)) + n
        with torch.no_grad():
            want = model.last_logits(tokens[:, None], law)
        assert relative(step(tokens, ours), want) <= 1e-5
    assert ours.lengths.tolist() == law.lengths.tolist()
    for a, b in zip(tensors(ours), tensors(law), strict=True):
        assert relative(a, b) <= 1e-5
    assert [t.data_ptr() for t in tensors(ours)] == places


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("lengths", [[9], [0], [9, 9, 9], [3, 12, 0, 1], [0, 0]], ids=str)
@pytest.mark.parametrize("exact", [True, False])
def test_step_equals_the_model(tiny_model: Make, changes: dict[str, Any], lengths: list[int], exact: bool) -> None:
    compare(tiny_model(**changes), lengths, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("laid_out", [False, True])
def test_exact_logits_are_the_lone_rows_to_the_bit(tiny_model: Make, dtype: torch.dtype, laid_out: bool) -> None:
    model = tiny_model(**HYBRID).to(dtype)
    if laid_out:
        with force("decode_step", "plain"):
            lay_out(model)
    lengths, tokens, step = [3, 12, 0, 3, 9], torch.arange(5), Step(model, exact=True)
    together, alone = prefilled(model, lengths), prefilled(model, lengths)
    for _ in range(4):
        rows = [step(tokens[i : i + 1], alone.rows(i, i + 1)) for i in range(5)]
        assert torch.equal(step(tokens, together), torch.cat(rows))


@pytest.mark.parametrize("exact", [True, False])
def test_step_in_bf16_is_near_the_model_in_bf16(tiny_model: Make, exact: bool) -> None:
    model = tiny_model(**HYBRID, n_routed_experts=0).bfloat16()
    ours, law = prefilled(model, [9, 5]), prefilled(model, [9, 5])
    step = Step(model, exact)
    for n in range(3):
        tokens = torch.tensor([1, 2]) + n
        with torch.no_grad():
            want = model.last_logits(tokens[:, None], law).float()
        got = step(tokens, ours)
        assert got.dtype == torch.bfloat16
        assert (got.float() - want).norm() <= 0.03 * want.norm()


def test_lay_out_changes_no_value(tiny_model: Make) -> None:
    model, plain = tiny_model(**HYBRID), tiny_model(**HYBRID)
    with force("decode_step", "plain"):
        lay_out(model)
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    compare(model, [3, 12, 7], exact=False)


def test_a_text_generated_in_a_batch_is_the_text_alone(tiny_model: Make) -> None:
    tokenizer = ByteTokenizer()
    model = tiny_model(**HYBRID, vocab_size=tokenizer.vocab_size)
    prompts = ["The fox", "", "A long prompt, much longer than the others are", "x", "Two words"]
    together = generate(model, tokenizer, prompts, max_new_tokens=12, seed=3)
    assert len(set(together)) == 5
    for prompt, made in zip(prompts, together, strict=True):
        assert generate(model, tokenizer, prompt, max_new_tokens=12, seed=3) == made
    # Two at a time, so that the caches' rows end, are kept and begin at different steps.
    assert generate(model, tokenizer, prompts, max_new_tokens=12, seed=3, batch_size=2) == together
    assert generate(model, tokenizer, prompts, max_new_tokens=12, seed=3, exact=False) == together


def test_a_prompt_read_in_chunks_is_the_prompt_read_at_once(tiny_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ByteTokenizer()
    model = tiny_model(**HYBRID, vocab_size=tokenizer.vocab_size)
    prompt = "Once upon a time there was a fox who read in small pieces."
    whole = generate(model, tokenizer, prompt, max_new_tokens=8, seed=1)
    monkeypatch.setattr("moonlet.generate.engine.PREFILL_CHUNK", 5)
    assert generate(model, tokenizer, prompt, max_new_tokens=8, seed=1) == whole
