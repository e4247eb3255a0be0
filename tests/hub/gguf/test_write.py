"""A GGUF holds every weight of a model once, at its place and in its type; what has no form there is refused."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moonlet.config import LinearAttention, RopeScaling
from moonlet.hub.gguf import types, write
from moonlet.hub.gguf.folder import folder_tensors
from moonlet.hub.gguf.limits import architecture
from moonlet.hub.gguf.tensors import official_tensors, plan
from moonlet.hub.gguf.write import write_gguf
from moonlet.hub.read import read_model
from moonlet.hub.write import write_model
from moonlet.model.model import CausalLM
from moonlet.text.byte import ByteTokenizer
from tests.conftest import LINEAR
from tests.hub import official
from tests.hub.gguf.llama import needs_gguf

BOTH = pytest.mark.parametrize("changes", [{}, LINEAR], ids=["deepseek2", "kimi-linear"])


def numbers(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file as fp32, shapes as PyTorch has them."""
    import gguf

    return {
        t.name: torch.from_numpy(np.array(gguf.quants.dequantize(t.data, t.tensor_type), dtype=np.float32)).view(
            [int(n) for n in reversed(t.shape)]
        )
        for t in gguf.GGUFReader(path).tensors
    }


def kinds_of(path: Path) -> dict[str, str]:
    """The type of every tensor of a file."""
    import gguf

    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}


@needs_gguf
@BOTH
def test_names_are_those_of_the_architecture(
    tiny_model: Callable[..., CausalLM], tmp_path: Path, changes: dict[str, Any]
) -> None:
    import gguf

    written = write_gguf(tiny_model(**changes), None, tmp_path / "m.gguf")
    (arch,) = (a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == written.architecture)
    known = {gguf.TENSOR_NAMES[t] for t in gguf.MODEL_TENSORS[arch]}
    for name in numbers(written.path):
        parts = name.removesuffix(".weight").removesuffix(".bias").split(".")
        assert ".".join(["blk", "{bid}", *parts[2:]] if parts[0] == "blk" else parts) in known


@needs_gguf
def test_a_file_holds_every_number_of_the_model_once(tiny_model: Callable[..., CausalLM], tmp_path: Path) -> None:
    model = tiny_model(moe_intermediate_size=16)
    held, state = numbers(write_gguf(model, None, tmp_path / "m.gguf").path), model.state_dict()
    assert sum(t.numel() for t in held.values()) == sum(t.numel() for t in state.values())
    assert "blk.0.ffn_gate_exps.weight" not in held  # the first layer is dense
    gate, up = state["model.layers.2.mlp.experts.gate_up_proj"].chunk(2, 1)
    assert torch.equal(held["blk.2.ffn_gate_exps.weight"], gate)
    assert torch.equal(held["blk.2.ffn_up_exps.weight"], up)
    assert torch.equal(held["blk.2.ffn_down_exps.weight"], state["model.layers.2.mlp.experts.down_proj"])
    # The two halves of kv_b_proj do what it does: scores and outputs of one head, from a latent.
    c = model.config
    latent, head = torch.randn(c.kv_lora_rank or 0), 1
    whole = (state["model.layers.1.self_attn.kv_b_proj.weight"] @ latent).view(c.num_attention_heads, -1)[head]
    key = latent @ held["blk.1.attn_k_b.weight"][head]
    value = held["blk.1.attn_v_b.weight"][head] @ latent
    torch.testing.assert_close(torch.cat((key, value)), whole)


@needs_gguf
def test_vectors_norms_routers_convolutions_and_rates_stay_fp32(
    tiny_model: Callable[..., CausalLM], tmp_path: Path
) -> None:
    kinds = kinds_of(write_gguf(tiny_model(**LINEAR), None, tmp_path / "m.gguf", "BF16").path)
    exact = {name.split(".", 2)[-1] for name, kind in kinds.items() if kind == "F32"}
    assert exact == {
        "output_norm.weight", "attn_norm.weight", "ffn_norm.weight", "attn_kv_a_norm.weight", "ssm_norm.weight",
        "ffn_gate_inp.weight", "exp_probs_b.bias", "ssm_conv1d_q.weight", "ssm_conv1d_k.weight", "ssm_conv1d_v.weight",
        "ssm_a", "ssm_dt.bias",
    } - {"output_norm.weight"} | {"weight"}  # fmt: skip
    assert set(kinds.values()) == {"F32", "BF16"}


@needs_gguf
def test_rows_that_are_no_multiple_of_32_are_f16_and_it_is_said(
    tiny_model: Callable[..., CausalLM], tmp_path: Path
) -> None:
    written = write_gguf(tiny_model(hidden_size=64), None, tmp_path / "m.gguf", "q4_0")
    assert written.types["Q4_0"]
    assert written.types["F16"]
    assert any("no multiple of 32" in note for note in written.notes)
    with pytest.raises(ValueError, match="valid: F32, F16, BF16, Q8_0, Q4_0"):
        write_gguf(tiny_model(), None, tmp_path / "n.gguf", "Q6_K")


@needs_gguf
def test_routed_experts_may_be_of_another_type(tiny_model: Callable[..., CausalLM], tmp_path: Path) -> None:
    model = tiny_model(hidden_size=64, moe_intermediate_size=32)
    kinds = kinds_of(write_gguf(model, None, tmp_path / "m.gguf", "BF16", experts="q4_0").path)
    experts = {name for name in kinds if "_exps." in name}
    assert experts
    assert {kinds[name] for name in experts} == {"Q4_0"}
    assert {kind for name, kind in kinds.items() if name not in experts} == {"BF16", "F32"}
    narrow = write_gguf(tiny_model(), None, tmp_path / "n.gguf", "F16", experts="Q4_0")
    assert any("as Q4_0 wants" in note for note in narrow.notes)
    with pytest.raises(ValueError, match="Q6_K"):
        write_gguf(model, None, tmp_path / "o.gguf", "BF16", experts="Q6_K")


@needs_gguf
def test_the_eps_of_latents_costs_a_narrow_weight_no_bit(tiny_model: Callable[..., CausalLM], tmp_path: Path) -> None:
    model = tiny_model(rms_norm_eps=1e-5).bfloat16()
    held = numbers(write_gguf(model, None, tmp_path / "m.gguf", "BF16").path)
    w = model.state_dict()["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"].float()
    R = model.config.kv_lora_rank
    assert torch.equal(held["blk.0.attn_kv_a_mqa.weight"][:R], 4 * w[:R])
    assert torch.equal(held["blk.0.attn_kv_a_mqa.weight"][R:], w[R:])


@needs_gguf
@BOTH
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_a_folder_gives_the_same_bytes_as_the_model_in_whatever_order_and_pieces(
    tiny_model: Callable[..., CausalLM],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    kind: str,
) -> None:
    model = tiny_model(hidden_size=64, **changes)
    want = write_gguf(model, None, tmp_path / "m.gguf", kind, name="x").path.read_bytes()
    shuffled = list(official_tensors(model))
    random.Random(0).shuffle(shuffled)
    monkeypatch.setattr(write, "official_tensors", lambda model: iter(shuffled))
    monkeypatch.setattr(types, "_AT_ONCE", 100)
    assert write_gguf(model, None, tmp_path / "m.gguf", kind, name="x").path.read_bytes() == want
    write_model(model, tmp_path / "folder")
    ByteTokenizer().save(tmp_path / "folder")
    monkeypatch.setattr(write, "vocabulary_of", lambda tokenizer, config: None)
    assert write_gguf(tmp_path / "folder", None, tmp_path / "f.gguf", kind, name="x").path.read_bytes() == want


@needs_gguf
@pytest.mark.parametrize("form", [official.fp8, official.int4, official.mxfp4], ids=["fp8", "int4", "mxfp4"])
def test_a_checkpoint_of_low_bits_is_written_as_what_it_stands_for(
    tiny_model: Callable[..., CausalLM], tmp_path: Path, form: Callable[..., official.Form]
) -> None:
    pytest.importorskip("compressed_tensors")
    model = tiny_model(hidden_size=64, moe_intermediate_size=32)
    tensors = dict(official_tensors(model))
    stored = official.multimodal(form(model.config.to_dict(), tensors))
    folder = official.write(tmp_path / "folder", stored.config, stored.tensors, 2)
    held = numbers(write_gguf(read_model(folder, dtype=torch.float32), None, tmp_path / "m.gguf").path)
    gate = torch.stack([stored.twin[f"model.layers.1.mlp.experts.{e}.gate_proj.weight"] for e in range(8)])
    torch.testing.assert_close(held["blk.1.ffn_gate_exps.weight"], gate, rtol=1e-6, atol=0)
    streamed = dict(folder_tensors(folder))
    assert {name: tuple(t.shape) for name, t in streamed.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    for name, tensor in streamed.items():
        torch.testing.assert_close(tensor.float(), stored.twin[name], rtol=1e-6, atol=0)


@needs_gguf
def test_what_does_not_fit_is_listed_and_the_old_file_stays(
    tiny_model: Callable[..., CausalLM], tmp_path: Path
) -> None:
    folder, file = tmp_path / "folder", tmp_path / "m.gguf"
    model = tiny_model(vocab_size=280)
    write_model(model, folder)
    ByteTokenizer().save(folder)
    write_gguf(folder, None, file)
    before = file.read_bytes()
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.experts.3.up_proj.weight"]
    tensors["model.layers.0.self_attn.kv_b_proj.weight"] = torch.zeros(5)
    tensors["model.layers.1.mlp.experts.0.down_proj.weight"] = torch.zeros(4, 4)
    tensors["model.odd"] = torch.zeros(2)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(7)  # stale in Kimi-K2's files; ignored
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.odd is not part") as error:
        write_gguf(folder, None, file)
    for part in (
        "experts.3.up_proj.weight is missing",
        "kv_b_proj.weight has shape [5]",
        "0.down_proj.weight has shape",
    ):
        assert part in str(error.value)
    assert "inv_freq" not in str(error.value)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["m.gguf"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kv_lora_rank": None, "num_key_value_heads": 2, "head_dim": 14}, "grouped-query attention"),
        ({"moe_layer_freq": 2}, "moe_layer_freq > 1"),
        ({"num_hidden_layers": 27}, "q_lora_rank and 27 layers"),
        (LINEAR | {"mla_use_nope": False}, "rope beside KDA"),
        (LINEAR | {"q_lora_rank": 28}, "q_lora_rank beside KDA"),
        (LINEAR | {"norm_topk_prob": False}, "not normalised"),
        (LINEAR | {"linear_attn_config": LinearAttention(6, 5, (1, 2, 3))}, "no layer of attention"),
        (LINEAR | {"linear_attn_config": None}, "no layer of KDA"),
        ({"rope_scaling": RopeScaling(1.0, 64, attention_factor=2.0)}, "attention_factor"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tiny_config: Callable[..., Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        architecture(tiny_config(**changes))


def test_the_plan_of_kimi_k2_is_made_without_its_weights() -> None:
    from moonlet.config import preset

    config = preset("kimi-k2").replace(num_hidden_layers=4)
    found = plan(config, exact=False)
    assert found.shapes["blk.3.ffn_gate_exps.weight"] == (384, 2048, 7168)
    assert len(found.parts) == 3 + 4 * 9 + 3 + 3 * (3 * 384 + 3 + 2)


def test_a_missing_package_is_one_line(
    tiny_model: Callable[..., CausalLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r'pip install "moonlet\[gguf\]"'):
        write_gguf(tiny_model(), None, tmp_path / "m.gguf")


@pytest.mark.skipif(not find_spec("gguf"), reason="needs the package gguf")
@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_folders_chat_template_and_name_go_into_the_file(
    tiny_model: Callable[..., CausalLM], tmp_path: Path, place: str
) -> None:
    import json

    from moonlet.hub.gguf.read import read_header

    folder = tmp_path / "tiny-moon"
    write_model(tiny_model(vocab_size=280), folder)
    ByteTokenizer().save(folder)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    if place.endswith(".json"):
        about = json.loads((folder / place).read_text(encoding="utf-8"))
        template_file = json.dumps(about | {"chat_template": template})
    else:
        template_file = template
    (folder / place).write_text(template_file, encoding="utf-8")
    found = read_header(write_gguf(folder, None, tmp_path / "m.gguf").path).metadata
    assert found["tokenizer.chat_template"] == template
    assert found["general.name"] == "tiny-moon"
