"""What holds for every model: causality, independence of batch mates, precision, clear errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.model.model import CausalLM
from moonlet.model.router import Router
from tests.conftest import GQA

VARIANTS: dict[str, dict[str, Any]] = {
    "q_lora": {},
    "no q_lora, two shared": {"q_lora_rank": None, "n_shared_experts": 2},
    "groups, no shared": {"n_group": 4, "topk_group": 2, "n_shared_experts": 0},
    "dense": {"n_routed_experts": 0},
    "all MoE, yarn": {
        "first_k_dense_replace": 0,
        "rope_scaling": {"type": "yarn", "factor": 32.0, "original_max_position_embeddings": 16, "mscale_all_dim": 1.0},
    },
    "gqa": GQA,
    "mha, half turned, tied": GQA | {
        "num_key_value_heads": 4, "head_dim": 16, "partial_rotary_factor": 0.5, "tie_word_embeddings": True,
    },
    "mqa, dense, linear": GQA | {
        "num_key_value_heads": 1, "n_routed_experts": 0, "rope_scaling": {"type": "linear", "factor": 3.0},
    },
    "softmax scores, every other layer": {"scoring_func": "softmax", "moe_layer_freq": 2, "tie_word_embeddings": True},
}  # fmt: skip


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest, tiny_model: Callable[..., CausalLM]) -> CausalLM:
    changes = dict(VARIANTS[request.param])
    if "rope_scaling" in changes:
        from moonlet.config import RopeScaling

        changes["rope_scaling"] = RopeScaling(**changes["rope_scaling"])
    return tiny_model(**changes)


def text(B: int, T: int, seed: int = 0) -> Tensor:
    return torch.randint(61, (B, T), generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.float() - b.float()).abs().max() / b.float().abs().max()).item()


@torch.no_grad()
def test_causality_a_token_never_changes_what_came_before(model: CausalLM) -> None:
    tokens = text(2, 41)
    before = model(tokens)
    for t in (0, 1, 17, 39, 40):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % 61
        after = model(changed)
        if t:
            assert relative(after[:, :t], before[:, :t]) <= 1e-6
        assert (after[:, t] - before[:, t]).abs().max() > 1e-2  # the change itself is seen


def test_causality_no_gradient_flows_backwards_in_time(model: CausalLM) -> None:
    embedded: list[Tensor] = []

    def keep(module: object, args: object, out: Tensor) -> None:
        out.retain_grad()
        embedded.append(out)

    handle = model.model.embed_tokens.register_forward_hook(keep)
    model(text(1, 30))[:, 12].square().sum().backward()
    handle.remove()
    grad = embedded[0].grad
    assert grad is not None
    assert (grad[:, 13:] == 0).all()
    assert (grad[:, :13] != 0).any(-1).all()


@torch.no_grad()
def test_a_row_alone_equals_the_row_in_a_batch(model: CausalLM) -> None:
    tokens = text(5, 37)
    together = model(tokens)
    for row in range(5):
        assert relative(together[row : row + 1], model(tokens[row : row + 1])) <= 1e-5


@torch.no_grad()
def test_a_text_alone_equals_its_beginning_in_a_longer_one(model: CausalLM) -> None:
    tokens = text(1, 60)
    assert relative(model(tokens[:, :23]), model(tokens)[:, :23]) <= 1e-5


@torch.no_grad()
def test_last_logits_are_the_last_of_all(model: CausalLM) -> None:
    tokens = text(3, 19)
    assert relative(model.last_logits(tokens), model(tokens)[:, -1]) <= 1e-6


def test_loss_is_the_cross_entropy_of_the_logits(model: CausalLM) -> None:
    tokens, targets = text(2, 20), text(2, 20, seed=1)
    targets[0, :7] = -100
    expected = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    assert model.loss(tokens, targets).item() == pytest.approx(expected.item(), rel=1e-5)
    each = model.token_losses(tokens, targets)
    assert each.shape == targets.shape
    assert (each[0, :7] == 0).all()
    assert each.sum().item() / 33 == pytest.approx(expected.item(), rel=1e-5)


def test_every_parameter_gets_a_gradient(model: CausalLM) -> None:
    model.loss(text(4, 60), text(4, 60, seed=1)).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


def test_a_model_that_has_generated_can_be_trained(model: CausalLM) -> None:
    # Positions beyond those seen so far are first met in inference mode, as when a run shows samples.
    with torch.inference_mode():
        model(text(1, 400))
    model.loss(text(1, 30), text(1, 30, seed=1)).backward()


def test_compute_dtype_bf16_keeps_fp32_masters_and_stays_near(model: CausalLM) -> None:
    tokens, targets = text(2, 33), text(2, 33, seed=1)
    exact, exact_loss = model(tokens).detach(), model.loss(tokens, targets).item()
    model.compute_dtype = torch.bfloat16
    logits = model(tokens)
    assert logits.dtype == torch.bfloat16
    # Where two experts nearly tie, rounding sends a token to the other.
    assert F.cosine_similarity(logits.float().flatten(), exact.flatten(), 0) > 0.97
    loss = model.loss(tokens, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact_loss, rel=0.05)
    loss.backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


@torch.no_grad()
def test_bf16_weights_run_with_and_without_a_cache(model: CausalLM) -> None:
    tokens = text(2, 24)
    exact = model(tokens)
    model = model.bfloat16()
    cache = model.new_cache(2, 24)
    cached = torch.cat([model(tokens[:, a:b], cache) for a, b in ((0, 15), (15, 20), (20, 21), (21, 24))], 1)
    for logits in (model(tokens), cached):
        assert logits.dtype == torch.bfloat16
        # Where two experts nearly tie, rounding sends a token to the other.
    assert F.cosine_similarity(logits.float().flatten(), exact.flatten(), 0) > 0.97


def test_loads_are_counted_in_training_only(tiny_model: Callable[..., CausalLM]) -> None:
    model = tiny_model()
    routers = [m for m in model.modules() if isinstance(m, Router)]
    tokens = text(3, 20)
    model(tokens)
    assert all((r.load == 0).all() for r in routers)
    model.train()
    model(tokens)
    assert [int(r.load.sum()) for r in routers] == [3 * 20 * 3] * 2
    model(tokens)
    assert [int(r.load.sum()) for r in routers] == [2 * 3 * 20 * 3] * 2
    model.eval()
    model(tokens)
    assert [int(r.load.sum()) for r in routers] == [2 * 3 * 20 * 3] * 2
    assert not any("load" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int32), r"tokens are torch\.int32 \[2, 3\]; they must be torch\.int64"),
        (torch.zeros(2, 3), r"tokens are torch\.float32 \[2, 3\]"),
        (torch.zeros(3, dtype=torch.int64), r"tokens are torch\.int64 \[3\]"),
        (torch.zeros(1, 0, dtype=torch.int64), r"tokens are torch\.int64 \[1, 0\]"),
        (torch.zeros(1, 513, dtype=torch.int64), "513 tokens exceed max_position_embeddings 512"),
    ],
)
def test_wrong_tokens_are_refused(tiny_model: Callable[..., CausalLM], tokens: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model()(tokens)
