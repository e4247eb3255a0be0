"""Observing changes nothing, and shows exactly what was computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moonlet.model.observe import observe, probabilities, router_entropy
from moonlet.ops import attention as op
from moonlet.ops.dispatch import force, implementation
from moonlet.optim.balance import routers_of

Make = Callable[..., Any]
TOKENS = torch.randint(0, 61, (37,), generator=torch.Generator().manual_seed(0))

# Latent attention, and grouped queries: two query heads a key head.
KINDS: dict[str, dict[str, Any]] = {
    "mla": {},
    "gqa": {"kv_lora_rank": None, "q_lora_rank": None, "num_key_value_heads": 2, "head_dim": 12},
}


@pytest.fixture(params=sorted(KINDS))
def model(request: pytest.FixtureRequest, tiny_model: Make) -> Any:
    return tiny_model(**KINDS[request.param])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_an_unobserved_model_bit_for_bit(model: Any, dtype: torch.dtype) -> None:
    model.compute_dtype = dtype
    with torch.no_grad():
        plain = model(TOKENS[None])[0].float()
    assert torch.equal(observe(model, TOKENS).logits, plain)
    with torch.no_grad():
        assert torch.equal(model(TOKENS[None])[0].float(), plain)  # and nothing stays behind


def test_attention_is_what_the_reference_weighs_values_with(model: Any) -> None:
    calls = []
    law = implementation("attention", "reference")

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append((v, out := law(q, k, v, *rest)))
        return out

    op.register("attention", "spy")(spy)
    with force("attention", "spy"):
        seen = observe(model, TOKENS)
    assert sorted(seen.attention) == [0, 1, 2]
    for (v, out), p in zip(calls, seen.attention.values(), strict=True):
        assert p.shape == (4, 37, 37)
        assert p.dtype == torch.float32
        assert torch.allclose(p.sum(-1), torch.ones(4, 37))
        assert not p.triu(1).any()
        assert torch.allclose(p @ v[0].repeat_interleave(4 // v.shape[1], 0), out[0], atol=1e-6)


def test_an_implementation_forced_from_outside_is_the_one_that_computes(tiny_model: Make) -> None:
    model = tiny_model()
    with force("attention", "reference"), torch.no_grad():
        assert torch.equal(observe(model, TOKENS).logits, model(TOKENS[None])[0])
        assert implementation("attention", "products") is op.reference  # still forced afterwards


def test_an_error_inside_leaves_nothing_watched(tiny_model: Make) -> None:
    model = tiny_model()
    with pytest.raises(IndexError):
        observe(model, torch.tensor([3, 61]))
    assert implementation("attention", "reference") is op.reference
    assert not any(layer._forward_pre_hooks for layer in model.model.layers)
    assert not any(router._forward_hooks for router in routers_of(model))


def test_routing_is_what_the_router_said(model: Any) -> None:
    seen = observe(model, TOKENS)
    assert sorted(seen.routing) == [1, 2]  # layer 0 is dense
    for routing in seen.routing.values():
        assert routing.scores.shape == (37, 8)
        weight = routing.scores.gather(1, routing.index)
        assert torch.allclose(routing.weight, 2.5 * weight / weight.sum(-1, keepdim=True))


def test_observation_counts_in_no_load_and_leaves_the_mode(tiny_model: Make) -> None:
    model = tiny_model().train()
    observe(model, TOKENS)
    router_entropy(model, TOKENS[None])
    assert model.training
    assert all(int(router.load.sum()) == 0 for router in routers_of(model))


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_router_entropy_is_ln_e_without_opinion_and_small_with_one(tiny_model: Make, scoring: str) -> None:
    model = tiny_model(scoring_func=scoring)
    for router in routers_of(model):
        torch.nn.init.zeros_(router.weight)
    assert list(router_entropy(model, TOKENS[None]).values()) == pytest.approx([2.0794415] * 2)
    for router in routers_of(model):
        torch.nn.init.normal_(router.weight, std=100.0)
    assert all(value < 1.8 for value in router_entropy(model, TOKENS[None]).values())


def test_a_model_without_experts_has_attention_and_no_routing(tiny_model: Make) -> None:
    model = tiny_model(first_k_dense_replace=3)
    seen = observe(model, TOKENS)
    assert (len(seen.attention), seen.routing, router_entropy(model, TOKENS[None])) == (3, {}, {})


def test_only_one_text_is_observed(tiny_model: Make) -> None:
    with pytest.raises(ValueError, match=r"\[1, 37\].*one text"):
        observe(tiny_model(), TOKENS[None])


def test_documents_hide_each_other() -> None:
    q = torch.randn(1, 2, 5, 4)
    p = probabilities(q, q, 1.0, 0, torch.tensor([[0, 0, 1, 1, 1]]))
    assert not p[..., 2:, :2].any()
