"""Initialisation: what the table in moonlet/model/init.py says, from the seed and the parameter's name alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from moonlet.config import ModelConfig, preset
from moonlet.model.init import build, initialise
from moonlet.model.model import CausalLM


def test_equal_seeds_give_equal_bits_and_others_do_not(tiny_config: Callable[..., ModelConfig]) -> None:
    a, b, c = (build(tiny_config(), seed=seed).state_dict() for seed in (3, 3, 4))
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
        assert value.dim() == 1 or not torch.equal(value, c[name]), name


def test_a_parameter_does_not_depend_on_the_others(tiny_config: Callable[..., ModelConfig]) -> None:
    small, large = build(tiny_config(num_hidden_layers=2)), build(tiny_config(num_hidden_layers=4))
    other = large.state_dict()
    for name, value in small.state_dict().items():
        assert torch.equal(value, other[name]), name


def test_the_order_of_construction_does_not_matter(tiny_config: Callable[..., ModelConfig]) -> None:
    expected = build(tiny_config(), seed=1).state_dict()
    model = CausalLM(tiny_config())
    layers = list(model.model.named_children())
    for name, child in reversed(layers):
        delattr(model.model, name)
        setattr(model.model, name, child)
    assert next(iter(model.state_dict())) != next(iter(expected))  # the order did change
    torch.manual_seed(99)
    initialise(model, 1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_the_global_generator_is_left_alone(tiny_config: Callable[..., ModelConfig]) -> None:
    before = torch.get_rng_state()
    build(tiny_config())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("std", [0.02, 0.5])
def test_each_parameter_is_distributed_as_the_table_says(std: float) -> None:
    model = build(preset("k2-nano").replace(initializer_range=std, num_hidden_layers=2))
    for name, p in model.named_parameters():
        if "norm" in name:
            assert (p == 1).all(), name
            continue
        error = std / math.sqrt(p.numel())
        assert abs(p.mean().item()) < 5 * error, name
        assert abs(p.std().item() - std) < 5 * error, name
        assert p.abs().max() > 3 * std, name  # normal, not uniform
    for name, buffer in model.named_buffers():
        assert (buffer == 0).all(), name


def test_no_two_parameters_share_their_draws() -> None:
    model = build(preset("k2-nano").replace(num_hidden_layers=2))
    heads = {name: tuple(p.flatten()[:4].tolist()) for name, p in model.named_parameters() if p.dim() > 1}
    assert len(set(heads.values())) == len(heads)


def test_a_preset_may_be_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'k2-nano'"):
        build("k2-nona")
    assert build("k2-nano", device="meta").config == preset("k2-nano")


def test_meta_takes_no_memory_and_knows_every_shape(tiny_config: Callable[..., ModelConfig]) -> None:
    big = build("kimi-k2", device="meta")
    assert {p.device.type for p in big.parameters()} == {"meta"}
    meta, real = build(tiny_config(), device="meta").state_dict(), build(tiny_config()).state_dict()
    assert {k: v.shape for k, v in meta.items()} == {k: v.shape for k, v in real.items()}


def test_weights_are_fp32_masters(tiny_config: Callable[..., ModelConfig]) -> None:
    assert {p.dtype for p in build(tiny_config(dtype="bfloat16")).parameters()} == {torch.float32}


def test_logits_start_small_and_the_loss_near_uniform() -> None:
    model = build("k2-nano")
    tokens = torch.randint(4096, (2, 64), generator=torch.Generator().manual_seed(0))
    assert model.loss(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(math.log(4096), abs=0.1)
