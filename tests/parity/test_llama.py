"""The oracle for grouped-query attention and rope scaling: transformers' LlamaForCausalLM, in fp32.

Texts run beyond the length a scaling starts from, or it would not show. The mutations at the end show that these tests
can fail.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

import moonlet.model.gqa
from moonlet.config import ModelConfig
from moonlet.generate.step import Step
from moonlet.model.gqa import GQA
from moonlet.model.model import CausalLM
from moonlet.model.rope import Rope, rotate
from moonlet.ops.native import without_kernels
from tests.parity.compare import (
    KERNELS_TOLERANCE,
    TOLERANCE,
    differences,
    error,
    quiet,
    read_ours,
    read_theirs,
    show_every_detail,
    text,
    too_large,
)

B, T = 2, 48
ORIGINAL = 24  # the length that scalings start from

LINEAR = {"rope_type": "linear", "factor": 3.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.5}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
# Heads, heads of keys, width of a head (None: what the hidden size leaves), scaling, tied head.
STRUCTURES: list[tuple[int, int, int | None, dict[str, Any], bool]] = [
    (4, 2, None, {}, False),
    (4, 4, None, {}, True),
    (4, 1, 14, {}, False),
    (6, 2, 10, {}, True),
    (4, 2, None, LINEAR, False),
    (2, 1, 18, LINEAR, True),
    (4, 2, None, DYNAMIC, False),
    (3, 3, 12, DYNAMIC, True),
    (4, 2, None, YARN, False),
    (8, 2, 8, {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}, False),
    (8, 4, 8, {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0, "beta_fast": 4.0}, True),
    (4, 2, None, {**YARN, "attention_factor": 1.3, "beta_slow": 2.0}, False),
]
CASES = range(len(STRUCTURES))
LIMIT = {"dynamic": ORIGINAL}  # there, max_position_embeddings is the length it starts from


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


def draw(case: int) -> LlamaConfig:
    """The oracle's configuration of structure `case`, with widths drawn from it."""
    heads, groups, head_dim, scaling, tied = STRUCTURES[case]
    rng = random.Random(case)
    return LlamaConfig(
        vocab_size=rng.randrange(50, 90),
        hidden_size=heads * rng.choice((8, 12, 16)),
        intermediate_size=rng.randrange(40, 80),
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        max_position_embeddings=LIMIT.get(scaling.get("rope_type", ""), 2048),
        initializer_range=0.2,
        rms_norm_eps=rng.choice((1e-5, 1e-6)),
        rope_parameters={"rope_type": "default", "rope_theta": rng.choice((10000.0, 500.0))} | scaling,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )


def build_oracle(case: int) -> LlamaForCausalLM:
    torch.manual_seed(case)
    model = LlamaForCausalLM(draw(case)).eval()
    show_every_detail(model)
    return model


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_the_oracle_read_from_its_folder(case: int, tmp_path: Path) -> None:
    oracle = build_oracle(case)
    tokens = text(oracle.config.vocab_size, B, T, case)
    ours = read_ours(oracle, tmp_path)
    with without_kernels():
        assert too_large(differences(ours, oracle, tokens)) == {}
    assert too_large(differences(ours, oracle, tokens), KERNELS_TOLERANCE) == {}


@pytest.mark.parametrize("case", CASES)
def test_the_oracle_reads_the_folder_we_write(case: int, tmp_path: Path) -> None:
    oracle = build_oracle(case)
    ours = read_ours(oracle, tmp_path / "source")
    again = read_theirs(ours, tmp_path / "ours", LlamaForCausalLM)
    tokens = text(oracle.config.vocab_size, B, T, case)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, oracle(tokens).logits)
        assert error(ours(tokens), again(tokens).logits) <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_cached_decode_equals_the_oracles_cached_decode(case: int, tmp_path: Path) -> None:
    # With its cache, not without: dynamic frequencies depend on the length at which a key was read.
    oracle = build_oracle(case)
    ours = read_ours(oracle, tmp_path)
    tokens = text(oracle.config.vocab_size, B, T, case)
    cache, fast, step = ours.new_cache(B, T), ours.new_cache(B, T), Step(ours, exact=False)
    with torch.no_grad():
        first = oracle(tokens[:, :20], use_cache=True)
        past = first.past_key_values
        assert error(ours(tokens[:, :20], cache), first.logits) <= TOLERANCE
        ours.hidden(tokens[:, :20], fast)
        for t in range(20, T):
            theirs = oracle(tokens[:, t : t + 1], past_key_values=past, use_cache=True).logits
            assert error(ours(tokens[:, t : t + 1], cache), theirs) <= TOLERANCE
            assert error(step(tokens[:, t], fast), theirs[:, 0]) <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_the_oracles_config_survives_the_way_through_ours(case: int, tmp_path: Path) -> None:
    theirs = draw(case)
    theirs.save_pretrained(tmp_path)
    config = ModelConfig.from_file(tmp_path)
    assert ModelConfig.from_dict(config.to_dict()) == config
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    back = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(back, LlamaConfig)
    ignored = {"transformers_version", "_name_or_path", "architectures", "dtype", "rope_parameters"}
    for name in set(theirs.to_dict()) - ignored:
        assert getattr(back, name) == getattr(theirs, name), name
    given = theirs.rope_parameters
    assert {k: back.rope_parameters[k] for k in given} == given


def test_a_published_llama_config_is_read(tmp_path: Path) -> None:
    # The keys of an older file: no head_dim, no rope_theta, null key heads.
    old = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = ModelConfig.from_dict(old | {"num_key_value_heads": None, "pretraining_tp": 1, "rope_scaling": None})
    assert (config.head_dim, config.num_key_value_heads, config.rope_theta) == (16, 4, 10000.0)
    assert (config.vocab_size, config.intermediate_size, config.max_position_embeddings) == (32000, 11008, 2048)


# Mutations. Each takes our right model and the monkeypatch fixture, and breaks one thing.


def _interleaved_pairs(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(moonlet.model.gqa, "rotate_halves", rotate)


def _groups_of_neighbours(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    """Query head h to key head h mod G."""
    for layer in model.model.layers:
        gqa = layer.self_attn
        assert isinstance(gqa, GQA)
        w = gqa.q_proj.weight
        w.data = w.data.unflatten(0, (gqa.groups, -1, gqa.K)).transpose(0, 1).flatten(0, 2)


def _scale_of_the_hidden_size(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for layer in model.model.layers:
        layer.self_attn.scale = (model.config.hidden_size / model.config.num_attention_heads) ** -0.5  # type: ignore[union-attr,assignment]


def _plain_rope(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    model._rope = Rope(model.config.replace(rope_scaling=None, max_position_embeddings=2048))


def _frequencies_of_the_trained_length(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    model._rope.factor = 1.0


def _static_stretch(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    """The frequencies of the longest text for all."""
    limit = model.config.context_limit
    stretched = Rope._stretched

    def forward(self: Rope, start: int, length: int, device: torch.device) -> Any:
        cos, sin = stretched(self, start, limit - start, device)
        return cos[:length], sin[:length]

    patch.setattr(Rope, "_stretched", forward)


MUTATIONS: dict[str, tuple[int, Callable[..., None]]] = {
    "interleaved pairs": (0, _interleaved_pairs),
    "wrong key head": (0, _groups_of_neighbours),
    "scale of another width": (3, _scale_of_the_hidden_size),
    "linear scaling missing": (4, _plain_rope),
    "dynamic scaling missing": (6, _frequencies_of_the_trained_length),
    "dynamic scaling of the longest text": (6, _static_stretch),
    "YaRN missing": (8, _plain_rope),
    "attention_factor missing": (11, lambda model, patch: model._rope.__dict__.update(multiplier=1.0)),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@without_kernels()  # what is broken here is written in PyTorch
def test_breaking_one_detail_breaks_parity(mutation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, mutate = MUTATIONS[mutation]
    oracle = build_oracle(case)
    ours = read_ours(oracle, tmp_path)
    tokens = text(oracle.config.vocab_size, B, T, case)
    mutate(ours, monkeypatch)
    assert differences(ours, oracle, tokens)["logits"] > 10 * TOLERANCE


def test_yarn_in_cos_and_sin_is_the_square_in_the_softmax(tmp_path: Path) -> None:
    # Why GQA has no softmax multiplier: cos and sin reach the product twice, once from each side.
    oracle = build_oracle(8)
    ours = read_ours(oracle, tmp_path)
    tokens = text(oracle.config.vocab_size, B, T)
    before: Tensor = ours(tokens)
    assert ours.config.rope_scaling
    square = ours.config.rope_scaling.magnitude(1.0) ** 2
    ours._rope.multiplier, ours._rope._table = 1.0, {}
    for layer in ours.model.layers:
        assert isinstance(layer.self_attn, GQA)
        layer.self_attn.scale *= square
    assert error(ours(tokens), before) <= TOLERANCE
