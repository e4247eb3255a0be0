"""The oracle: transformers' KimiLinearForCausalLM, in fp32, in values and gradients, through Moonshot's files.

The folders are in Moonshot's layout both ways: one that this file writes by hand from the oracle's weights and both
read, and one that we write and the oracle reads. The mutations at the end show that these tests can fail: each breaks
one published detail of the architecture in our model and must be seen.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import KimiLinearConfig, KimiLinearForCausalLM

import moonlet.model.kda
from moonlet.config import ModelConfig
from moonlet.hub.read import read_model
from moonlet.hub.write import write_model
from moonlet.model.kda import KDA
from moonlet.model.mla import MLA
from moonlet.model.model import CausalLM
from moonlet.model.norm import RMSNorm
from moonlet.model.rope import Rope
from moonlet.model.router import Router
from moonlet.ops.native import without_kernels
from tests.parity import compare
from tests.parity.compare import KERNELS_TOLERANCE, TOLERANCE, error, gradients, quiet, too_large

# What decides the structure is written out, the widths are drawn. `kda`: the layers, counted from one; lengths around
# the 64 tokens that the oracle takes at once.
STRUCTURES: list[dict[str, Any]] = [
    {"kda": (1, 2, 3), "layers": 4, "dense": 1, "shared": 1, "batch": 2, "length": 70},
    {"kda": (1, 3), "layers": 4, "dense": 2, "shared": 2, "batch": 1, "length": 131, "q_lora": True},
    {"kda": (2, 3), "layers": 3, "dense": 0, "shared": 1, "batch": 3, "length": 33, "groups": (4, 2), "eps": 1e-6},
    {"kda": (1, 2), "layers": 2, "dense": 1, "shared": 1, "batch": 2, "length": 64, "taps": 2},
    {"kda": (), "layers": 2, "dense": 1, "shared": 1, "batch": 2, "length": 40, "q_lora": True},
    {"kda": (1,), "layers": 3, "dense": 1, "shared": 0, "batch": 2, "length": 65, "taps": 3, "norm": False},
    {"kda": (1, 2, 3, 5), "layers": 6, "dense": 1, "shared": 1, "batch": 2, "length": 48},
    {"kda": (2,), "layers": 2, "dense": 0, "shared": 2, "batch": 1, "length": 1, "groups": (2, 1)},
    {"kda": (1, 2, 3), "layers": 4, "dense": 4, "shared": 1, "batch": 4, "length": 17, "heads": 1, "taps": 5},
    {"kda": (1, 3), "layers": 3, "dense": 1, "shared": 1, "batch": 2, "length": 127, "groups": (4, 3), "eps": 1e-6,
     "q_lora": True, "norm": False, "taps": 1},
]  # fmt: skip
CASES = range(len(STRUCTURES))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


def published(case: int) -> dict[str, Any]:
    """A config.json of structure `case` as Moonshot would write it."""
    s, rng = STRUCTURES[case], random.Random(case)
    heads = rng.choice((2, 3, 4))
    kda = list(s["kda"])
    return {
        "architectures": ["KimiLinearForCausalLM"],
        "model_type": "kimi_linear",
        "vocab_size": rng.randrange(50, 90),
        "hidden_size": rng.choice((32, 40, 48)),
        "intermediate_size": rng.randrange(40, 80),
        "moe_intermediate_size": rng.randrange(12, 40),
        "num_hidden_layers": s["layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": 72,
        "q_lora_rank": rng.randrange(16, 30) if s.get("q_lora") else None,
        "kv_lora_rank": rng.randrange(16, 30),
        "qk_nope_head_dim": rng.randrange(8, 20),
        "qk_rope_head_dim": rng.choice((8, 12, 16)),
        "v_head_dim": rng.randrange(8, 20),
        "mla_use_nope": True,
        "num_experts": rng.choice((8, 12)),
        "num_experts_per_token": 2,
        "num_shared_experts": s["shared"],
        "first_k_dense_replace": s["dense"],
        "moe_layer_freq": 1,
        "moe_renormalize": s.get("norm", True),
        "moe_router_activation_func": "sigmoid",
        "num_expert_group": s.get("groups", (1, 1))[0],
        "topk_group": s.get("groups", (1, 1))[1],
        "use_grouped_topk": True,
        "routed_scaling_factor": rng.choice((1.0, 2.446)),
        "rms_norm_eps": s.get("eps", 1e-5),
        "hidden_act": "silu",
        "initializer_range": 0.15,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "model_max_length": 2048,
        "tie_word_embeddings": False,
        "num_nextn_predict_layers": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "linear_attn_config": {
            "head_dim": rng.choice((8, 12, 16)),
            "num_heads": s.get("heads", rng.choice((2, 3))),
            "short_conv_kernel_size": s.get("taps", 4),
            "kda_layers": kda,
            "full_attn_layers": [i for i in range(1, s["layers"] + 1) if i not in kda],
        },
        "dtype": "float32",
    }


@torch.no_grad()
def build_oracle(case: int) -> KimiLinearForCausalLM:
    """A random model in which every detail shows: gains and biases are random, and what is normed small against eps."""
    torch.manual_seed(case)
    config = KimiLinearConfig(**published(case), attn_implementation="eager", experts_implementation="eager")
    model = KimiLinearForCausalLM(config).eval()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("e_score_correction_bias"):
            value.copy_(0.2 * torch.randn(value.shape))
        elif "norm" in name:
            value.add_(0.3 * torch.randn(value.shape))
        elif "q_a_proj" in name:
            value.mul_(0.01)
        elif "kv_a_proj" in name:
            value[: config.kv_lora_rank].mul_(0.01)
        elif name.endswith("dt_bias"):
            # Not the small values of the usual start: the oracle's log(1 + e^x) rounds them away in fp32.
            value.uniform_(-2.0, 1.5)
        elif name.endswith("A_log"):
            value.uniform_(-3.0, -1.0)
        elif "v_proj" in name:
            value.mul_(0.1)  # so that the norm behind the recurrence sees its eps
    return model


def on_disk(oracle: KimiLinearForCausalLM) -> dict[str, Tensor]:
    """The oracle's weights under the names of the published checkpoint."""
    out: dict[str, Tensor] = {}
    for name, value in oracle.state_dict().items():
        prefix, _, last = name.rpartition(".mlp.")
        if name.endswith(".self_attn.conv1d.weight"):
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                out[name.replace("conv1d", f"{letter}_conv1d")] = part
        elif last.startswith("experts."):
            for e, matrix in enumerate(value):
                inner = f"{prefix}.block_sparse_moe.experts.{e}"
                if last.endswith("down_proj"):
                    out[f"{inner}.w2.weight"] = matrix
                else:
                    out[f"{inner}.w1.weight"], out[f"{inner}.w3.weight"] = matrix.chunk(2)
        elif last.startswith(("gate.", "shared_experts.")):
            out[f"{prefix}.block_sparse_moe.{last}"] = value
        else:
            out[name.replace(".forget_gate.", ".")] = value
    return {name: value.clone().contiguous() for name, value in out.items() if value.numel()}


def in_memory(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The oracle's tensors, or their gradients, under our names."""
    out: dict[str, Tensor] = {}
    for name, value in theirs.items():
        if name.endswith(".self_attn.conv1d.weight"):
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                out[name.replace("conv1d", f"{letter}_conv1d")] = part
        elif value.numel():
            out[name.replace(".forget_gate.", ".")] = value
    return out


def write_by_hand(oracle: KimiLinearForCausalLM, case: int, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(published(case)), encoding="utf-8")
    save_file(on_disk(oracle), folder / "model.safetensors", metadata={"format": "pt"})


def text(case: int) -> Tensor:
    return compare.text(published(case)["vocab_size"], STRUCTURES[case]["batch"], STRUCTURES[case]["length"], case)


def differences(ours: CausalLM, oracle: KimiLinearForCausalLM, tokens: Tensor) -> dict[str, float]:
    """Relative error of the logits and, where a text has a next token, of each parameter's gradient."""
    our_logits, logits = ours(tokens), oracle(tokens, use_cache=False).logits
    errors = {"logits": error(our_logits, logits)}
    if tokens.shape[1] > 1:
        ours_g, theirs_g = gradients(ours, our_logits, tokens), in_memory(gradients(oracle, logits, tokens))
        assert set(ours_g) == {name for name, p in ours.named_parameters() if p.numel()} == set(theirs_g)
        errors |= {name: error(ours_g[name], g) for name, g in theirs_g.items()}
    return errors


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_the_oracle_read_from_moonshots_layout(case: int, tmp_path: Path) -> None:
    oracle = build_oracle(case)
    write_by_hand(oracle, case, tmp_path)
    ours = read_model(tmp_path).eval()
    state = in_memory(oracle.state_dict())
    assert set(state) == set(ours.state_dict())
    assert [name for name, value in ours.state_dict().items() if not torch.equal(value, state[name])] == []
    with without_kernels():
        assert too_large(differences(ours, oracle, text(case))) == {}
    assert too_large(differences(ours, oracle, text(case)), KERNELS_TOLERANCE) == {}


@pytest.mark.parametrize("case", CASES)
def test_the_oracle_reads_the_folder_we_write(case: int, tmp_path: Path) -> None:
    oracle = build_oracle(case)
    write_by_hand(oracle, case, tmp_path / "hand")
    write_model(read_model(tmp_path / "hand"), tmp_path / "ours")
    hand, written = (load_file(tmp_path / side / "model.safetensors") for side in ("hand", "ours"))
    assert set(hand) == set(written)
    assert [name for name, value in hand.items() if not torch.equal(value, written[name])] == []
    again, report = KimiLinearForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager", experts_implementation="eager"
    )
    empty = {name for name, value in oracle.state_dict().items() if not value.numel()}  # shared experts of width 0
    assert set(report["missing_keys"]) == empty
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    for name, value in oracle.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("case", CASES)
def test_the_published_config_survives_the_way_through_ours(case: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published(case)), encoding="utf-8")
    written = ModelConfig.from_file(tmp_path).to_dict()
    unused = ("head_dim",)
    sizes = () if published(case)["linear_attn_config"]["kda_layers"] else ("linear_attn_config",)
    given = {key: value for key, value in published(case).items() if key not in (*unused, *sizes)}
    assert {key: written[key] for key in given} == given
    assert set(written) - set(published(case)) == {"use_cache"}


def test_the_folder_the_oracle_saves_is_read(tmp_path: Path) -> None:
    oracle = build_oracle(0)
    oracle.save_pretrained(tmp_path)
    ours, state = read_model(tmp_path), in_memory(oracle.state_dict())
    assert [name for name, value in ours.state_dict().items() if not torch.equal(value, state[name])] == []
    oracle.save_pretrained(tmp_path / "joined", save_original_format=False)
    with pytest.raises(ValueError, match="save_original_format"):
        read_model(tmp_path / "joined")


def test_the_oracle_has_a_tied_models_head(tmp_path: Path) -> None:
    write_by_hand(build_oracle(0), 0, tmp_path)
    tied = CausalLM(ModelConfig.from_file(tmp_path).replace(tie_word_embeddings=True))
    tied.load_state_dict({k: v for k, v in read_model(tmp_path).state_dict().items() if k != "lm_head.weight"})
    write_model(tied, tmp_path / "tied")
    theirs = KimiLinearForCausalLM.from_pretrained(tmp_path / "tied", attn_implementation="eager").eval()
    tokens = text(0)
    with torch.no_grad():
        assert error(tied(tokens), theirs(tokens, use_cache=False).logits) <= TOLERANCE


@pytest.mark.parametrize("case", [0, 1, 5])
def test_cached_decode_equals_the_oracle(case: int, tmp_path: Path) -> None:
    oracle = build_oracle(case)
    write_by_hand(oracle, case, tmp_path)
    ours, tokens = read_model(tmp_path).eval(), text(case)
    B, T = tokens.shape
    with torch.no_grad():
        cache = ours.new_cache(B, T)
        parts = [ours(tokens[:, :20], cache), *(ours(tokens[:, t : t + 1], cache) for t in range(20, T))]
        assert error(torch.cat(parts, 1), oracle(tokens, use_cache=False).logits) <= TOLERANCE


# Mutations. Each takes our right model and the monkeypatch fixture, and breaks one thing.


def _each(model: CausalLM, kind: type) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, kind))


def _latent_eps_of_the_blocks(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for module in _each(model, MLA):
        module.kv_a_layernorm.eps = model.config.rms_norm_eps


def _block_eps_of_the_latents(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for module in _each(model, RMSNorm):
        module.eps = 1e-6


def _eps_of_the_heads(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for module in _each(model, KDA):
        module.o_norm.eps = 1e-6


def _rope(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    model._rope = Rope(model.config)
    for module in _each(model, MLA):
        module.turns = True


def _taps_turned_round(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for module in _each(model, KDA):
        module.k_conv1d.weight.data = module.k_conv1d.weight.data.flip(-1)


def _filters_exchanged(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for module in _each(model, KDA):
        module.q_conv1d, module.k_conv1d = module.k_conv1d, module.q_conv1d


def _gates_exchanged(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for module in _each(model, KDA):
        module.f_a_proj, module.g_a_proj = module.g_a_proj, module.f_a_proj


def _no_rates(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for module in _each(model, KDA):
        module.A_log.data.zero_()


def _no_bias_of_the_decay(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for module in _each(model, KDA):
        module.dt_bias.data.zero_()


def _recurrence(change: Callable[..., tuple[Tensor, ...]]) -> Callable[..., None]:
    """A mutation of what the delta rule is given."""

    def mutate(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
        rule = moonlet.model.kda.delta_rule
        patch.setattr(moonlet.model.kda, "delta_rule", lambda *x, **how: rule(*change(*x), **how))

    return mutate


def _decay_behind_the_read(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
    # The state decays one token late.
    return q, k, v, torch.cat((torch.zeros_like(g[:, :1]), g[:, :-1]), 1), beta


def _one_decay_a_head(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
    return q, k, v, g.mean(-1, keepdim=True).expand_as(g), beta


def _full_correction(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
    return q, k, v, g, torch.ones_like(beta)


def _groups_ignored(model: CausalLM, patch: pytest.MonkeyPatch) -> None:
    for module in _each(model, Router):
        module.rule = dataclasses.replace(module.rule, groups=1)


MUTATIONS: dict[str, Callable[..., None]] = {
    "latent norms with the blocks' eps": _latent_eps_of_the_blocks,
    "block norms with the latents' eps": _block_eps_of_the_latents,
    "the heads' norm with the latents' eps": _eps_of_the_heads,
    "rope on the shared key": _rope,
    "taps of the convolution turned round": _taps_turned_round,
    "filters of queries and keys exchanged": _filters_exchanged,
    "gates of decay and output exchanged": _gates_exchanged,
    "no A_log": _no_rates,
    "no dt_bias": _no_bias_of_the_decay,
    "decay behind the read": _recurrence(_decay_behind_the_read),
    "one decay a head": _recurrence(_one_decay_a_head),
    "beta of one": _recurrence(_full_correction),
    "groups ignored": _groups_ignored,
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@without_kernels()  # what is broken here is written in PyTorch
def test_breaking_one_detail_breaks_parity(mutation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = len(STRUCTURES)
    structure = {"kda": (1, 3), "layers": 4, "dense": 1, "shared": 1, "batch": 2, "length": 70, "groups": (4, 2)}
    monkeypatch.setattr("tests.parity.test_kimi_linear.STRUCTURES", [*STRUCTURES, structure])
    oracle = build_oracle(case)
    write_by_hand(oracle, case, tmp_path)
    ours, tokens = read_model(tmp_path).eval(), text(case)
    with torch.no_grad():
        logits = oracle(tokens, use_cache=False).logits
        assert error(ours(tokens), logits) <= TOLERANCE
        MUTATIONS[mutation](ours, monkeypatch)
        assert error(ours(tokens), logits) > 10 * TOLERANCE
