"""What the microscope shows is what the model computed, by a way of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moonlet.generate.microscope import cache_growth, heads, look
from moonlet.model.kda import KDA
from moonlet.model.model import CausalLM
from moonlet.model.observe import observe
from tests.conftest import GQA, LINEAR

Make = Callable[..., CausalLM]
IDS = torch.randint(0, 61, (23,), generator=torch.Generator().manual_seed(0)).tolist()
KINDS: dict[str, dict[str, Any]] = {"mla": {}, "gqa": GQA, "linear": LINEAR}


@pytest.fixture(params=sorted(KINDS))
def model(request: pytest.FixtureRequest, tiny_model: Make) -> CausalLM:
    return tiny_model(**KINDS[request.param])


def test_probabilities_are_those_of_a_plain_forward(model: CausalLM) -> None:
    view = look(model, IDS, k=4)
    with torch.no_grad():
        log_p = model(torch.tensor([IDS]))[0].log_softmax(-1)
    assert view.logprobs[0] is None
    assert view.likely[0] == ()
    for t in range(1, len(IDS)):
        assert view.logprobs[t] == log_p[t - 1, IDS[t]].item()
        assert [one.logprob for one in view.likely[t]] == log_p[t - 1].topk(4).values.tolist()
        assert [one.token for one in view.likely[t]] == log_p[t - 1].topk(4).indices.tolist()
    assert [one.token for one in view.next] == log_p[-1].topk(4).indices.tolist()


def test_ids_beyond_the_vocabulary_are_not_told(model: CausalLM) -> None:
    view = look(model, IDS, k=50, vocabulary=7)
    assert all({one.token for one in told} == set(range(7)) for told in view.likely[1:])


def test_experts_are_those_the_routers_chose(model: CausalLM) -> None:
    view, seen = look(model, IDS), observe(model, torch.tensor(IDS))
    assert sorted(view.experts) == [1, 2]
    for layer, routing in seen.routing.items():
        assert torch.equal(view.experts[layer], routing.index)
        assert torch.equal(view.weights[layer], routing.weight)
        assert view.experts[layer].shape == (23, 3)


def test_attention_of_a_head_is_that_of_an_observed_model(model: CausalLM) -> None:
    seen = observe(model, torch.tensor(IDS))
    assert seen.attention
    for layer, maps in seen.attention.items():
        for head in range(heads(model, layer)):
            view = look(model, IDS, layer, head)
            assert view.decay is None
            assert view.attention is not None
            torch.testing.assert_close(view.attention, maps[head], rtol=0, atol=1e-6)


def test_decay_is_what_the_state_loses(tiny_model: Make) -> None:
    model = tiny_model(**LINEAR)
    layer, head = 1, 3
    view = look(model, IDS, layer, head)
    assert view.attention is None
    assert view.decay is not None
    mixer = model.model.layers[layer].self_attn
    assert isinstance(mixer, KDA)
    inputs: list[torch.Tensor] = []
    hook = mixer.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    with torch.no_grad():
        model(torch.tensor([IDS]))
    hook.remove()
    x = inputs[0][0].double()  # (T, D)
    rate = mixer.A_log.double().exp().view(-1, 1)  # (H, 1)
    weight = mixer.f_b_proj.weight.double() @ mixer.f_a_proj.weight.double()
    wanted = (x @ weight.T + mixer.dt_bias.double()).view(len(IDS), mixer.heads, mixer.K)
    decay = (-rate * torch.nn.functional.softplus(wanted)).exp()[:, head]
    torch.testing.assert_close(view.decay, decay.detach().float(), rtol=1e-4, atol=1e-5)
    assert ((view.decay >= 0) & (view.decay <= 1)).all()


def test_what_is_kept_is_the_product_of_decays(tiny_model: Make) -> None:
    view = look(tiny_model(**LINEAR), IDS, 0, 0)
    assert view.decay is not None
    kept = view.kept()
    assert torch.equal(kept.diagonal(), torch.ones(len(IDS)))
    assert not kept.triu(1).any()
    torch.testing.assert_close(kept[9, 4], view.decay[5:10].prod(0).mean())


def test_a_head_that_attends_has_nothing_to_keep(tiny_model: Make) -> None:
    with pytest.raises(ValueError, match="only a head of KDA forgets"):
        look(tiny_model(), IDS, 0, 0).kept()


def test_looking_changes_nothing(model: CausalLM) -> None:
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    look(model, IDS, 0, 0)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_bytes_of_the_cache_are_those_of_a_cache(model: CausalLM) -> None:
    growth = cache_growth(model)
    for length in (1, 7, 64):
        assert growth.at(length) == model.new_cache(1, length).nbytes


def test_attention_grows_and_kda_does_not(tiny_model: Make) -> None:
    assert cache_growth(tiny_model()).constant == 0
    linear = cache_growth(tiny_model(**LINEAR))
    assert linear.constant > 0
    assert 3 * linear.per_token == cache_growth(tiny_model(q_lora_rank=None)).per_token


@pytest.mark.parametrize(
    ("ids", "settings", "message"),
    [
        ([], {}, "the text has 0 tokens; the microscope reads 1..512 at once"),
        ([1] * 513, {}, "the text has 513 tokens"),
        ([61], {}, "token 61 is outside the model's vocabulary, 0..60"),
        ([1], {"layer": 0}, "give both layer and head"),
        ([1], {"layer": 3, "head": 0}, "layer 3 is not there; the model has layers 0..2"),
        ([1], {"layer": 0, "head": -1}, "head -1 is not there; layer 0 has heads 0..3"),
        ([1], {"k": 51}, "k is 51; it must lie in 0..50"),
    ],
)
def test_what_is_not_there_is_refused(tiny_model: Make, ids: list[int], settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        look(tiny_model(), ids, **settings)  # type: ignore[arg-type]
