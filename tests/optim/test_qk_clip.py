"""QK-Clip: clipped heads' logits become gamma times what they were, and nothing else of the model moves a bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from moonlet.config import RopeScaling
from moonlet.model import peaks
from moonlet.model.gqa import GQA
from moonlet.model.init import build
from moonlet.model.mla import MLA
from moonlet.model.model import CausalLM
from moonlet.model.rope import Rope
from moonlet.ops import attention as attention_op
from moonlet.ops.attention import causal_mask
from moonlet.ops.dispatch import _implementations, force, register
from moonlet.ops.max_logit import max_logit
from moonlet.optim.qk_clip import (
    attentions_of,
    clear_peaks,
    describe_logits,
    qk_clip,
    summarise_logits,
    track_logits,
)
from tests.conftest import GQA as GROUPED

# MLA's softmax scale carries YaRN's factor; with GQA cosines and sines do.
YARN = RopeScaling(8.0, 64, mscale_all_dim=1.0)
YARN_OF_GQA = RopeScaling(8.0, 64)
KINDS: dict[str, dict[str, Any]] = {
    "mla": {},
    "mla without q_lora": {"q_lora_rank": None},
    "mla with yarn": {"rope_scaling": YARN},
    "gqa": GROUPED,
    "one key head": GROUPED | {"num_key_value_heads": 1},
    "as many key heads": GROUPED | {"num_key_value_heads": 4},
    "gqa with yarn": GROUPED | {"rope_scaling": YARN_OF_GQA},
}
T = 33


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, tiny_model: Callable[..., CausalLM]) -> CausalLM:
    return tiny_model(**KINDS[request.param]).train()


@pytest.fixture
def apart() -> Iterator[None]:
    """Logits are not seen by the kernel that computes them: the bound has a use."""
    with force("attention", "products"):
        yield


@pytest.fixture
def seen() -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Filled with the q, k and v of every attention of a forward."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    @register("attention", "noted")
    def noted(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        calls.append((q.detach(), k.detach(), v.detach()))
        return attention_op.reference(q, k, v, *rest)

    with force("attention", "noted"):
        yield calls
    del _implementations["attention"]["noted"]


def tokens(seed: int = 0, rows: int = 2) -> Tensor:
    return torch.randint(0, 61, (rows, T), generator=torch.Generator().manual_seed(seed))


def layer_input(seed: int = 0) -> Tensor:
    return torch.randn(2, T, 40, generator=torch.Generator().manual_seed(seed))


def attend(model: CausalLM, layer: int, x: Tensor) -> Tensor:
    """The attention of one layer on x [B, T, D]."""
    out: Tensor = attentions_of(model)[layer](x, Rope(model.config)(0, x.shape[1], x.device))
    return out


def logits_of(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """[B, H, T, T], minus infinity where not seen."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    mask = causal_mask(0, q.shape[2], k.shape[2], q.device)
    return (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, -math.inf)


def tau_between(largest: Tensor) -> float:
    """A threshold that the upper half of the heads exceeds."""
    ordered = largest.flatten().sort().values
    return float(ordered[len(ordered) // 2 - 1 : len(ordered) // 2 + 1].mean())


def test_logits_of_clipped_heads_are_gamma_times_the_old_ones_and_others_keep_their_bits(
    model: CausalLM, seen: list[tuple[Tensor, Tensor, Tensor]]
) -> None:
    x = layer_input()
    for layer, attention in attentions_of(model).items():
        attend(model, layer, x)
        q, k, v = seen.pop()
        before = logits_of(q, k, attention.scale)
        largest = before.amax((0, 2, 3))
        tau = tau_between(largest)
        track_logits(model, tau)
        attend(model, layer, x)
        seen.clear()
        record = qk_clip(model, tau)
        gamma = record["gamma"][layer]
        assert gamma == pytest.approx([min(1.0, tau / float(s)) for s in largest], rel=1e-5)
        assert sorted(g < 1 for g in gamma) == [False, False, True, True]
        attend(model, layer, x)
        new_q, new_k, new_v = seen.pop()
        after = logits_of(new_q, new_k, attention.scale)
        assert torch.equal(new_v, v)
        n = attention.heads // new_k.shape[1]
        for h, g in enumerate(gamma):
            if g == 1:
                assert torch.equal(after[:, h], before[:, h])
                assert torch.equal(new_q[:, h], q[:, h])
                assert torch.equal(new_k[:, h // n], k[:, h // n])
            else:
                torch.testing.assert_close(after[:, h], before[:, h] * g, rtol=1e-4, atol=1e-5)
                assert after[:, h].max().item() == pytest.approx(tau, rel=1e-5)
        track_logits(model, None)


def test_only_rows_of_queries_and_keys_of_clipped_heads_change(model: CausalLM) -> None:
    track_logits(model, 1e-3)
    model(tokens())
    qk_clip(model, None)  # what follows is about layer 1 alone
    attend(model, 1, layer_input())
    largest = torch.tensor(qk_clip(model, None)["max_logits"][1])
    tau = tau_between(largest)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attend(model, 1, layer_input())
    gamma = torch.tensor(qk_clip(model, tau)["gamma"][1])
    changed = {name: v for name, v in model.state_dict().items() if not torch.equal(v, before[name])}
    attention = attentions_of(model)[1]
    at = "model.layers.1.self_attn."
    H = attention.heads
    ratio = {name.removeprefix(at): (v / before[name])[:, 0] for name, v in changed.items()}
    if isinstance(attention, MLA):
        query = "q_b_proj.weight" if attention.query_is_low_rank else "q_proj.weight"
        assert set(ratio) == {query, "kv_b_proj.weight"}
        q, kv = ratio[query].view(H, -1), ratio["kv_b_proj.weight"].view(H, -1)
        for h, g in enumerate(gamma.tolist()):
            assert q[h, : attention.K].tolist() == pytest.approx([g**0.5] * attention.K, rel=1e-5)
            assert q[h, attention.K :].tolist() == pytest.approx([g] * attention.P, rel=1e-5)
            assert kv[h, : attention.K].tolist() == pytest.approx([g**0.5] * attention.K, rel=1e-5)
            assert kv[h, attention.K :].tolist() == [1.0] * attention.V
        return
    assert isinstance(attention, GQA)
    shared = gamma.sqrt().view(attention.groups, -1).amax(1)
    assert {"q_proj.weight"} <= set(ratio) <= {"q_proj.weight", "k_proj.weight"}
    assert ("k_proj.weight" in ratio) == bool((shared < 1).any())
    torch.testing.assert_close(
        ratio["q_proj.weight"].view(H, -1)[:, 0], gamma / shared.repeat_interleave(H // attention.groups)
    )
    if "k_proj.weight" in ratio:
        torch.testing.assert_close(ratio["k_proj.weight"].view(attention.groups, -1)[:, 0], shared)


def test_with_a_key_head_for_each_query_head_both_take_the_root(tiny_gqa: Callable[..., CausalLM]) -> None:
    model = tiny_gqa(num_key_value_heads=4).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    track_logits(model, 0.1)
    model(tokens())
    gamma = torch.tensor(qk_clip(model, 0.1)["gamma"][0])
    assert (gamma < 1).any()
    for name in ("q_proj.weight", "k_proj.weight"):
        name = f"model.layers.0.self_attn.{name}"
        torch.testing.assert_close((model.state_dict()[name] / before[name]).view(4, -1)[:, 0], gamma.sqrt())


def test_a_group_whose_heads_are_all_clipped_shares_the_mildest_root(tiny_gqa: Callable[..., CausalLM]) -> None:
    model = tiny_gqa().train()
    before = model.state_dict()["model.layers.0.self_attn.k_proj.weight"].clone()
    track_logits(model, 0.01)
    model(tokens())
    record = qk_clip(model, 0.01)
    assert all(g < 1 for g in record["gamma"][0])
    shared = torch.tensor(record["gamma"][0]).sqrt().view(2, 2).amax(1)
    after = model.state_dict()["model.layers.0.self_attn.k_proj.weight"]
    torch.testing.assert_close((after / before).view(2, -1)[:, 0], shared)
    model(tokens())
    # Layer 0 reads the embeddings, which did not move.
    assert qk_clip(model, None)["max_logits"][0] == pytest.approx([0.01] * 4, rel=1e-4)


def test_a_model_below_the_threshold_keeps_every_bit(model: CausalLM) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    track_logits(model, 1e4)
    model(tokens())
    record = qk_clip(model, 1e4)
    assert all(g == 1 for row in record["gamma"] for g in row)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_peaks_are_the_maximum_over_all_micro_batches(model: CausalLM) -> None:
    track_logits(model, None, exact=True)
    alone = []
    for seed in range(3):
        model.loss(tokens(seed), tokens(seed))
        alone.append(torch.tensor(qk_clip(model, None)["max_logits"]))
    for seed in range(3):
        model.loss(tokens(seed), tokens(seed))
    together = torch.tensor(qk_clip(model, None)["max_logits"])
    assert torch.equal(together, torch.stack(alone).amax(0))
    assert len({int(i) for i in torch.stack(alone).argmax(0).flatten()}) > 1  # no one of them has them all


def test_exact_where_the_bound_exceeds_tau_and_bounded_elsewhere(model: CausalLM, apart: None) -> None:
    track_logits(model, None, exact=True)
    model(tokens())
    exact = torch.tensor(qk_clip(model, None)["max_logits"])
    track_logits(model, None)
    track_logits(model, 1e9)
    model(tokens())
    record = qk_clip(model, None)
    bound = torch.tensor(record["logit_bound"])
    assert (torch.tensor(record["max_logits"]) == -math.inf).all()
    assert (bound >= exact).all()
    tau = tau_between(bound)
    track_logits(model, tau)
    model(tokens())
    record = qk_clip(model, None)
    found, left = torch.tensor(record["max_logits"]), torch.tensor(record["logit_bound"])
    beyond = bound > tau
    assert 0 < int(beyond.sum()) < beyond.numel()
    torch.testing.assert_close(found[beyond], exact[beyond])
    assert (found[~beyond] == -math.inf).all()
    assert torch.equal(left[~beyond], bound[~beyond])
    assert (left[beyond] == -math.inf).all()


def test_packed_documents_count_only_what_they_see(model: CausalLM) -> None:
    packed = tokens(rows=1)
    track_logits(model, None, exact=True)
    model.loss(packed, packed, (torch.arange(T) // 3)[None])
    together = qk_clip(model, None)["max_logits"]
    # Rotations are relative: a document read from position 0 has the same logits.
    model.loss(packed.view(-1, 3), packed.view(-1, 3))
    apart = qk_clip(model, None)["max_logits"]
    model.loss(packed, packed)
    blind = qk_clip(model, None)["max_logits"]
    for layer in range(3):
        assert together[layer] == pytest.approx(apart[layer], rel=1e-4, abs=1e-5)
    assert together[0] != pytest.approx(blind[0], rel=1e-2)


def test_reading_that_is_no_training_is_never_counted(model: CausalLM) -> None:
    track_logits(model, 1e-6)
    model.eval()
    model(tokens())
    model(tokens(), model.new_cache(2, 64))
    model.train()
    model(tokens(), model.new_cache(2, 64))
    assert qk_clip(model, None)["max_logits"] == [[-math.inf] * 4] * 3


def test_peaks_are_gone_after_the_clip_and_after_a_refused_step(model: CausalLM) -> None:
    track_logits(model, 1e-6)
    for forget in (lambda: qk_clip(model, 0.5), lambda: clear_peaks(model)):
        model(tokens())
        forget()
        record = qk_clip(model, None)
        assert record["max_logits"] == record["logit_bound"] == [[-math.inf] * 4] * 3
        assert summarise_logits(record) == {"clipped": 0}


def test_tracking_changes_no_bit_of_what_is_computed(model: CausalLM) -> None:
    plain = model.loss(tokens(), tokens())
    plain.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    track_logits(model, 0.5)
    tracked = model.loss(tokens(), tokens())
    tracked.backward()
    assert torch.equal(plain, tracked)
    assert all(torch.equal(p.grad, gradients[name]) for name, p in model.named_parameters() if p.grad is not None)


def test_a_tracked_model_has_the_same_file_and_can_be_cast_and_untracked(model: CausalLM) -> None:
    before, buffers = set(model.state_dict()), [name for name, _ in model.named_buffers()]
    track_logits(model, 0.5)
    model.bfloat16()
    model(tokens())
    record = qk_clip(model, 0.5)
    assert max(map(max, record["max_logits"])) > 0.5
    assert set(model.state_dict()) == before
    assert [name for name, _ in model.named_buffers()] == buffers
    track_logits(model, None)
    model(tokens())
    assert qk_clip(model, 0.5) == {}


def test_a_clipped_model_decodes_in_absorbed_form_as_it_reads(model: CausalLM) -> None:
    track_logits(model, 0.2)
    model(tokens())
    assert min(map(min, qk_clip(model, 0.2)["gamma"])) < 1
    model.eval()
    cache = model.new_cache(2, T)
    model(tokens()[:, :-1], cache)
    torch.testing.assert_close(model(tokens()[:, -1:], cache)[:, 0], model(tokens())[:, -1], rtol=1e-3, atol=1e-4)


def test_heads_beyond_tau_are_looked_at_by_themselves_also_where_all_are_logged(
    model: CausalLM, monkeypatch: pytest.MonkeyPatch, apart: None
) -> None:
    """Together with others they might be rounded otherwise, and a log would change a run."""
    asked: list[list[int]] = []

    def noted(*inputs: Any, heads: Tensor, **settings: Any) -> Tensor:
        asked.append(heads.tolist())
        return max_logit(*inputs, heads=heads, **settings)

    track_logits(model, 1e9)
    attend(model, 1, layer_input())
    tau = tau_between(torch.tensor(qk_clip(model, None)["logit_bound"][1]))
    monkeypatch.setattr(peaks, "max_logit", noted)
    for exact in (False, True):
        track_logits(model, tau, exact)
        attend(model, 1, layer_input())
    assert [len(heads) for heads in asked] == [2, 2, 2]
    assert asked[0] == asked[1]
    assert sorted(asked[1] + asked[2]) == [0, 1, 2, 3]


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_tau_is_refused(tiny_model: Callable[..., CausalLM], tau: float) -> None:
    with pytest.raises(ValueError, match=r"tau of QK-Clip is .*; it must be above 0"):
        qk_clip(tiny_model(), tau)


def test_a_model_of_shapes_alone_can_be_built(tiny_config: Callable[..., Any]) -> None:
    model = build(tiny_config(), "meta")
    assert all(attention.peaks is None for attention in attentions_of(model).values())


def test_what_is_known_is_told_apart_from_what_is_bounded() -> None:
    inf = math.inf
    record = {
        "layers": [0, 2],
        "max_logits": [[120.0, -inf], [90.0, 80.0]],
        "logit_bound": [[60.0, 70.0], [-inf, 95.0]],
        "gamma": [[100 / 120, 1.0], [1.0, 1.0]],
    }
    assert summarise_logits(record) == {"max_logit": 120.0, "clipped": 1}
    assert describe_logits(record) == {
        "layers": [0, 2],
        "max_logits": [[120.0, None], [90.0, None]],
        "logit_bound": [[None, 70.0], [None, 95.0]],
        "gamma": [[0.833333, 1.0], [1.0, 1.0]],
        "clipped": [1, 0],
    }
    record["max_logits"][0][0] = -inf
    assert summarise_logits(record) == {"max_logit_bound": 95.0, "clipped": 1}
    assert summarise_logits({}) == {}
