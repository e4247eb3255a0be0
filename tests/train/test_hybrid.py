"""Training a hybrid of KDA and attention: every part of a step knows what to do with each kind of layer."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest
import torch

from moonlet.config import ModelConfig
from moonlet.config.linear_attention import LinearAttention
from moonlet.config.sections import OptimSettings
from moonlet.model.init import build
from moonlet.model.model import CausalLM
from moonlet.model.observe import observe
from moonlet.ops import newton_schulz as ns
from moonlet.optim.groups import parameter_groups
from moonlet.optim.muon import Muon
from moonlet.optim.optimizer import build_optimizer
from moonlet.optim.qk_clip import attentions_of
from tests.train import tiny
from tests.train.tiny import batch, step

LINEAR = LinearAttention(head_dim=8, num_heads=2, kda_layers=(1, 2, 3))


def hybrid(**changes: object) -> CausalLM:
    """Four layers, the last one attention without position, begun as published."""
    changes = {"q_lora_rank": None, "num_hidden_layers": 4, "mla_use_nope": True} | changes
    return build(ModelConfig(**tiny.MODEL | changes, vocab_size=64, linear_attn_config=LINEAR))


def weights(model: CausalLM) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_whose_each_parameter_is() -> None:
    groups = parameter_groups(hybrid(), OptimSettings())
    of = {name.removeprefix("model.layers.1."): g for g, group in groups.items() for name in group.parameters}
    at = "self_attn."
    for name in ("q_proj", "k_proj", "v_proj", "f_a_proj", "f_b_proj", "b_proj", "g_a_proj", "g_b_proj", "o_proj"):
        assert of[f"{at}{name}.weight"] == "matrices", name
    assert {of[f"{at}{name}_conv1d.weight"] for name in "qkv"} == {"filters"}
    assert of[f"{at}A_log"] == of[f"{at}dt_bias"] == "rates"
    assert of[f"{at}o_norm.weight"] == "gains"
    assert groups["rates"].weight_decay == 0


def test_per_head_muon_takes_kda_heads_one_by_one() -> None:
    model, whole = hybrid(), hybrid()
    before = weights(model)
    for m, per_head in ((model, True), (whole, False)):
        muon = Muon(m, OptimSettings(weight_decay=0.0, muon_per_head=per_head))
        generator = torch.Generator().manual_seed(0)
        for p in m.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        muon.step(1.0)
    after, together = weights(model), weights(whole)
    at = "model.layers.0.self_attn."
    for name in ("q_proj", "k_proj", "v_proj"):
        gradient = model.get_parameter(f"{at}{name}.weight").grad
        assert gradient is not None
        for head in range(2):
            rows = slice(8 * head, 8 * head + 8)
            law = ns.reference(gradient[rows] * 1.95) * 0.2 * 32**0.5
            moved = before[f"{at}{name}.weight"][rows] - after[f"{at}{name}.weight"][rows]
            torch.testing.assert_close(moved, law, rtol=1e-3, atol=1e-4)
    for name in ("f_a_proj", "f_b_proj", "b_proj", "g_a_proj", "g_b_proj", "o_proj"):
        assert torch.equal(after[f"{at}{name}.weight"], together[f"{at}{name}.weight"]), name


def test_qk_clip_sees_and_clips_the_attention_layer_alone() -> None:
    model, twin = hybrid(initializer_range=0.1), hybrid(initializer_range=0.1)
    assert list(attentions_of(model)) == [3]
    result, plain = step(model, [batch(0)], qk_clip_tau=0.02), step(twin, [batch(0)])
    assert result.logits["layers"] == [3]
    assert min(result.logits["gamma"][0]) < 1
    assert plain.logits == {}
    changed = {n for n, value in weights(model).items() if not torch.equal(value, weights(twin)[n])}
    assert changed == {f"model.layers.3.self_attn.{name}.weight" for name in ("q_proj", "kv_b_proj")}


@pytest.mark.parametrize("kind", ["muonclip", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_first_steps_at_the_published_rate_are_finite_and_learn(kind: str, dtype: torch.dtype) -> None:
    model = hybrid()
    model.compute_dtype = dtype
    optimizer = build_optimizer(model, OptimSettings(kind=kind))
    losses = []
    for n in range(25):
        result = step(model, [batch(n % 2)], optimizer, lr=1.1e-3, qk_clip_tau=100.0, bos_id=3)
        assert result.problem is None
        losses.append(result.loss)
    assert losses[-1] < losses[0] - 0.05
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("per_head", [False, True])
def test_a_resume_is_exact_to_the_bit(per_head: bool) -> None:
    settings = OptimSettings(muon_per_head=per_head)
    straight, first = hybrid(), hybrid()
    optimizer, before = build_optimizer(straight, settings), build_optimizer(first, settings)
    for n in range(6):
        step(straight, [batch(n), batch(n + 50)], optimizer, qk_clip_tau=0.05, bos_id=3)
        if n < 3:
            step(first, [batch(n), batch(n + 50)], before, qk_clip_tau=0.05, bos_id=3)
    resumed = hybrid()
    resumed.load_state_dict(first.state_dict())
    after = build_optimizer(resumed, settings)
    after.load_state(before.state())
    for n in range(3, 6):
        step(resumed, [batch(n), batch(n + 50)], after, qk_clip_tau=0.05, bos_id=3)
    for name, value in weights(straight).items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert all(torch.equal(after.state()[name], value) for name, value in optimizer.state().items())


def test_packed_documents_train_as_if_apart() -> None:
    # Two documents in one row, or each in a row of its own: the same sums of losses, so the same gradients.
    model = hybrid(n_routed_experts=0)
    tokens = torch.randint(4, 64, (1, 20), generator=torch.Generator().manual_seed(1))
    tokens[0, [0, 9]] = 3
    targets = tokens.roll(-1)
    documents = (tokens == 3).cumsum(1)
    model.loss(tokens, targets, documents).backward()
    together = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    for part in (slice(0, 9), slice(9, 20)):
        n = part.stop - part.start
        (model.loss(tokens[:, part], targets[:, part]) * n / 20).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, together[name], rtol=1e-4, atol=1e-6)


def test_observing_shows_the_attention_of_the_layer_that_has_it() -> None:
    model = hybrid().eval()
    tokens = batch(0)[0][0]
    seen = observe(model, tokens)
    assert list(seen.attention) == [3]
    assert seen.attention[3].shape == (2, 16, 16)
    with torch.no_grad():
        assert torch.equal(seen.logits, model(tokens[None])[0])


@pytest.mark.slow
def test_a_thousand_steps_as_published_have_no_nan_and_no_spike() -> None:
    """From the published initialisation at the published rate, 1.1e-3, under MuonClip."""
    model = hybrid()
    optimizer = build_optimizer(model, OptimSettings())
    found = []
    for i in range(1000):
        result = step(model, [batch(i % 32)], optimizer, lr=1.1e-3 * min(1, (i + 1) / 20), qk_clip_tau=100.0)
        assert result.problem is None, (i, result.problem)
        found.append(result.loss)
    # Over all batches the loss never rises by more than their noise, and no batch leaps up.
    rounds = [statistics.fmean(found[i : i + 32]) for i in range(0, 992, 32)]
    assert max(after - before for before, after in pairwise(rounds)) < 0.05
    assert max(after - before for before, after in zip(found, found[32:], strict=False)) < 0.5
    assert found[-1] < 0.8 * found[0]
