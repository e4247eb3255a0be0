"""Kimi Linear's folders: Moonshot's names on disk, ours in memory, rates and biases in fp32; doubt is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moonlet.config import preset
from moonlet.hub.names import Layout, layout_of
from moonlet.hub.read import read_model
from moonlet.hub.write import write_model
from moonlet.model.count import shapes
from moonlet.model.model import CausalLM
from tests.conftest import LINEAR
from tests.hub.test_read_write import assert_same_bits, refuse, rewrite

BIAS = "model.layers.1.block_sparse_moe.gate.e_score_correction_bias"

# Gate, up, down.
ROUTED = ("experts.N.w1", "experts.N.w3", "experts.N.w2")
SHARED = tuple(f"shared_experts.{part}_proj" for part in ("gate", "up", "down"))


@pytest.fixture
def model(tiny_model: Callable[..., CausalLM]) -> CausalLM:
    return tiny_model(**LINEAR)


@pytest.fixture
def folder(model: CausalLM, tmp_path: Path) -> Path:
    write_model(model, tmp_path)
    return tmp_path


def test_tensors_on_disk_have_moonshots_names_and_shapes() -> None:
    config = preset("kimi-linear-48b-a3b")
    layout, found = layout_of(config), {}
    for name, shape in shapes(config).items():
        for disk, part in layout.split(name, torch.empty(shape, device="meta")):
            kind = re.sub(r"experts\.\d+", "experts.N", disk)
            # One layer of each kind: KDA and dense, KDA with experts, attention.
            if re.match(r"model\.layers\.[013]\.|(?!model\.layers)", kind):
                found[kind] = list(part.shape)
    kda = {f"{x}_proj.weight": [4096, 2304] for x in "qkv"} | {f"{x}_conv1d.weight": [4096, 1, 4] for x in "qkv"}
    kda |= {"A_log": [1, 1, 32, 1], "dt_bias": [4096], "b_proj.weight": [32, 2304]}
    for gate in "fg":
        kda |= {f"{gate}_a_proj.weight": [128, 2304], f"{gate}_b_proj.weight": [4096, 128]}
    kda |= {"o_norm.weight": [128], "o_proj.weight": [2304, 4096]}
    mla = {"q_proj.weight": [6144, 2304], "kv_a_proj_with_mqa.weight": [576, 2304], "kv_a_layernorm.weight": [512],
           "kv_b_proj.weight": [8192, 512], "o_proj.weight": [2304, 4096]}  # fmt: skip
    experts = {"gate.weight": [256, 2304], "gate.e_score_correction_bias": [256]}
    for first, middle, last in (ROUTED, SHARED):
        experts |= {f"{first}.weight": [1024, 2304], f"{middle}.weight": [1024, 2304], f"{last}.weight": [2304, 1024]}
    dense = {"gate_proj.weight": [9216, 2304], "up_proj.weight": [9216, 2304], "down_proj.weight": [2304, 9216]}
    expected: dict[str, list[int]] = {}
    for layer, mixer, module, channels in (
        (0, kda, "mlp", dense), (1, kda, "block_sparse_moe", experts), (3, mla, "block_sparse_moe", experts),
    ):  # fmt: skip
        prefix = f"model.layers.{layer}."
        expected |= {f"{prefix}self_attn.{name}": shape for name, shape in mixer.items()}
        expected |= {f"{prefix}{module}.{name}": shape for name, shape in channels.items()}
        expected |= {f"{prefix}{norm}_layernorm.weight": [2304] for norm in ("input", "post_attention")}
    ends = {"model.embed_tokens.weight": [163840, 2304], "lm_head.weight": [163840, 2304], "model.norm.weight": [2304]}
    assert found == expected | ends


def test_experts_lie_in_the_order_gate_down_up(folder: Path, model: CausalLM) -> None:
    tensors, state = load_file(folder / "model.safetensors"), model.state_dict()
    gate, up = state["model.layers.2.mlp.experts.gate_up_proj"][5].chunk(2)
    for name, part in (("w1", gate), ("w2", state["model.layers.2.mlp.experts.down_proj"][5]), ("w3", up)):
        assert torch.equal(tensors[f"model.layers.2.block_sparse_moe.experts.5.{name}.weight"], part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_in_bf16_and_rates_are_read_as_fp32(folder: Path, model: CausalLM, dtype: torch.dtype) -> None:
    rewrite(folder, lambda t: t.update({BIAS: t[BIAS].bfloat16()}))
    read = read_model(folder, dtype=dtype)
    kinds = {name.endswith(("bias", "A_log")): value.dtype for name, value in read.state_dict().items()}
    assert kinds == {True: torch.float32, False: dtype}
    assert isinstance(read.get_parameter("model.layers.0.self_attn.A_log"), torch.nn.Parameter)
    before = model.state_dict()["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert torch.equal(read.state_dict()["model.layers.1.mlp.gate.e_score_correction_bias"], before.bfloat16().float())
    assert torch.equal(
        read.state_dict()["model.layers.1.self_attn.dt_bias"], model.state_dict()["model.layers.1.self_attn.dt_bias"]
    )


def test_dense_layers_where_transformers_saves_them_are_read(folder: Path, model: CausalLM) -> None:
    def move(tensors: dict[str, torch.Tensor]) -> None:
        for part in ("gate", "up", "down"):
            name = f"model.layers.0.mlp.{part}_proj.weight"
            tensors[name.replace("mlp", "block_sparse_moe")] = tensors.pop(name)

    rewrite(folder, move)
    assert_same_bits(read_model(folder), model)
    # Both spellings of one tensor are one too many.
    extra = "model.layers.0.mlp.up_proj.weight"
    rewrite(folder, lambda t: t.update({extra: t["model.layers.0.block_sparse_moe.up_proj.weight"].clone()}))
    refuse(folder, "model.layers.0.block_sparse_moe.up_proj.weight is not part of this model")


def test_wrong_tensors_are_named_as_on_disk(folder: Path) -> None:
    whole = load_file(folder / "model.safetensors")
    for name, shape in (("experts.4.w3.weight", [18, 40]), ("shared_experts.up_proj.weight", [18, 40])):
        disk = f"model.layers.1.block_sparse_moe.{name}"
        save_file({k: v for k, v in whole.items() if k != disk}, folder / "model.safetensors")
        refuse(folder, f"{disk} is missing")
        save_file(whole | {disk: whole[disk][1:].clone()}, folder / "model.safetensors")
        refuse(folder, f"{disk} has shape [17, 40], expected {shape}")
    rates = "model.layers.0.self_attn.A_log"
    save_file(whole | {rates: torch.zeros(5)}, folder / "model.safetensors")
    refuse(folder, f"{rates} has shape [5], expected [1, 1, 5, 1]")
    save_file(whole | {"model.layers.0.self_attn.g_b_proj.bias": torch.zeros(5)}, folder / "model.safetensors")
    refuse(folder, "model.layers.0.self_attn.g_b_proj.bias is not part of this model")


@pytest.mark.parametrize(
    "name",
    [
        "0.self_attn.forget_gate.A_log",
        "0.self_attn.conv1d.weight",
        "1.mlp.experts.gate_up_proj",
        "1.mlp.experts.down_proj",
    ],
)
def test_tensors_as_in_the_oracles_memory_are_refused_in_one_line(folder: Path, name: str) -> None:
    rewrite(folder, lambda t: t.update({f"model.layers.{name}": torch.ones(2)}))
    refuse(folder, f"holds model.layers.{name}", "save_original_format")


def test_a_tied_head_is_written_for_those_that_do_not_tie(tiny_model: Callable[..., CausalLM], tmp_path: Path) -> None:
    model = tiny_model(**LINEAR, tie_word_embeddings=True)
    write_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert_same_bits(read_model(tmp_path), model)
    assert layout_of(model.config.replace(linear_attn_config=None, mla_use_nope=False)) == Layout()
