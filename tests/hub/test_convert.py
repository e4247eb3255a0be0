"""Converting: same form, same bits; packing, multiplying out and packing again, same bits; and little memory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from moonlet.hub import convert as module
from moonlet.hub.convert import convert
from moonlet.hub.encoding import FORMS
from moonlet.hub.quantization import Quantization
from moonlet.hub.read import read_model
from moonlet.hub.write import write_model
from moonlet.model.model import CausalLM
from moonlet.ops.formats import int4
from tests.conftest import GQA, LINEAR
from tests.hub import official
from tests.hub.test_read_write import assert_same_bits, rewrite

SHARD = 40_000
FAMILIES: dict[str, dict[str, Any]] = {"deepseek_v3": {}, "kimi_linear": LINEAR, "glm4_moe": GQA}


@pytest.fixture
def model(tiny_model: Callable[..., CausalLM]) -> CausalLM:
    return tiny_model(eos_token_id=1)


def read(folder: Path, dtype: torch.dtype | None = None) -> CausalLM:
    """With all weights multiplied out."""
    return read_model(folder, dtype=dtype, packed=False)


def same_files(a: Path, b: Path) -> None:
    """All files but the cards, which name their folders."""
    names = [sorted(p.name for p in folder.iterdir() if p.name != "README.md") for folder in (a, b)]
    assert names[0] == names[1]
    for name in names[0]:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
def test_the_same_form_keeps_its_bits(
    tiny_model: Callable[..., CausalLM], tmp_path: Path, form: str, family: str
) -> None:
    write_model(tiny_model(**FAMILIES[family]), tmp_path / "a", format=form, max_shard_bytes=SHARD)
    convert(tmp_path / "a", tmp_path / "b", form, SHARD)
    same_files(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_converted_is_the_folder_written(model: CausalLM, tmp_path: Path, form: str) -> None:
    write_model(model, tmp_path / "fp32")
    write_model(model, tmp_path / "written", format=form, max_shard_bytes=SHARD)
    convert(tmp_path / "fp32", tmp_path / "converted", form, SHARD)
    same_files(tmp_path / "written", tmp_path / "converted")


@pytest.mark.parametrize(("form", "between"), [*itertools.product(["fp8", "int4", "mxfp4"], ["fp32", "bf16"])])
def test_multiplied_out_and_packed_again_has_the_same_bits(
    model: CausalLM, tmp_path: Path, form: str, between: str
) -> None:
    write_model(model, tmp_path / "a", format=form)
    convert(tmp_path / "a", tmp_path / "b", between)
    convert(tmp_path / "b", tmp_path / "c", form)
    same_files(tmp_path / "a", tmp_path / "c")
    assert_same_bits(read(tmp_path / "a", torch.bfloat16), read(tmp_path / "b", torch.bfloat16))


@pytest.mark.parametrize("form", FORMS)
def test_each_form_stores_what_it_says(model: CausalLM, tmp_path: Path, form: str) -> None:
    write_model(model, tmp_path, format=form)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    quantization = Quantization.from_config(config.get("quantization_config"))
    kinds: dict[str, set[str]] = {}
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            part = "experts" if ".experts." in name else "linear" if "_proj" in name else "rest"
            last = name.rsplit(".", 1)[-1]
            kinds.setdefault(f"{part} {last}", set()).add(file.get_slice(name).get_dtype())
    rest = {"rest weight": {"BF16"}, "rest e_score_correction_bias": {"F32"}}
    fp8 = {"weight": {"F8_E4M3"}, "weight_scale_inv": {"F32"}}
    int4 = {"weight_packed": {"I32"}, "weight_scale": {"BF16"}, "weight_shape": {"I64"}}
    experts = {
        "fp32": {"weight": {"F32"}}, "bf16": {"weight": {"BF16"}}, "fp8": fp8, "int4": int4,
        "mxfp4": {"weight_packed": {"U8"}, "weight_scale": {"U8"}},
    }[form]  # fmt: skip
    linear = fp8 if form == "fp8" else {"weight": {"F32" if form == "fp32" else "BF16"}}
    if form == "fp32":
        rest["rest weight"] = {"F32"}
    expected = {f"experts {k}": v for k, v in experts.items()} | {f"linear {k}": v for k, v in linear.items()} | rest
    assert kinds == expected
    assert quantization.method == (form if form in ("fp8", "int4", "mxfp4") else None)
    assert config["torch_dtype"] == ("float32" if form == "fp32" else "bfloat16")


def test_published_forms_become_plain_ones(tiny_model: Callable[..., CausalLM], tmp_path: Path) -> None:
    """Kimi-K2.5's: a wrapper's prefix, a vision tower, INT4 experts, and code that is never run."""
    pytest.importorskip("compressed_tensors")
    # compressed-tensors wants widths of whole groups.
    write_model(tiny_model(hidden_size=64, moe_intermediate_size=32), tmp_path / "fp32")
    config = json.loads((tmp_path / "fp32" / "config.json").read_text(encoding="utf-8"))
    form = official.multimodal(official.int4(config, load_file(tmp_path / "fp32" / "model.safetensors")))
    official.write(tmp_path / "k25", form.config, form.tensors, shards=3)
    told: list[str] = []
    convert(tmp_path / "k25", tmp_path / "out", "fp32", notice=told.append)
    assert any("vision" in line for line in told)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: value.shape for name, value in tensors.items()} == {n: v.shape for n, v in form.twin.items()}
    assert all(torch.equal(tensors[name], value) for name, value in form.twin.items())
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "deepseek_v3"
    assert not {"quantization_config", "auto_map", "text_config"} & set(config)
    # The same form: its experts bit by bit, under names without the prefix.
    convert(tmp_path / "k25", tmp_path / "same", "int4")
    tensors = load_file(tmp_path / "same" / "model.safetensors")
    expected = {
        n.removeprefix("language_model."): v for n, v in form.tensors.items() if n.startswith("language_model.")
    }
    assert {name for name in expected if "inv_freq" not in name} == set(tensors)
    assert all(torch.equal(value, expected[name]) for name, value in tensors.items())
    config = json.loads((tmp_path / "same" / "config.json").read_text(encoding="utf-8"))
    assert not any("language_model." in name for name in config["quantization_config"]["ignore"])


def test_a_tied_head_is_written_where_the_family_needs_one(tiny_model: Callable[..., CausalLM], tmp_path: Path) -> None:
    model = tiny_model(**LINEAR, tie_word_embeddings=True)
    write_model(model, tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", "bf16")
    tensors = load_file(tmp_path / "b" / "model.safetensors")
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])


def test_the_tokenizer_and_the_licence_come_along_and_code_stays(model: CausalLM, tmp_path: Path) -> None:
    source = tmp_path / "a"
    write_model(model, source)
    kept = {
        "tokenizer.json": "{1}", "tokenizer_config.json": "{2}", "tiktoken.model": "3", "chat_template.jinja": "4",
        "LICENSE": "5", "generation_config.json": '{"eos_token_id": [1, 7]}',
    }  # fmt: skip
    left = {
        "modeling_kimi.py": "import os",
        "pytorch_model.bin": "x",
        "optimizer.safetensors": "y",
        "README.md": "mine",
    }
    for name, content in (kept | left).items():
        (source / name).write_text(content, encoding="utf-8")
    (source / "state").mkdir()
    convert(source, tmp_path / "b", "bf16")
    found = {p.name: p.read_text(encoding="utf-8") for p in (tmp_path / "b").iterdir() if p.suffix != ".safetensors"}
    assert {name: found[name] for name in kept} == kept
    assert set(found) == {*kept, "config.json", "README.md"}
    assert "mine" not in found["README.md"]


def test_sizes_are_told_exactly(model: CausalLM, tmp_path: Path) -> None:
    write_model(model, tmp_path / "a")
    steps: list[tuple[int, int]] = []
    done = convert(tmp_path / "a", tmp_path / "b", "fp8", progress=lambda *step: steps.append(step))
    tensors = load_file(tmp_path / "b" / "model.safetensors")
    assert done.nbytes == sum(t.numel() * t.itemsize for t in tensors.values()) == steps[-1][0] == steps[-1][1]
    assert done.weights == sum(t.numel() for t in model.state_dict().values())
    assert done.bits == 8 * done.nbytes / done.weights
    assert steps == sorted(steps)


def test_one_weight_at_a_time_is_in_memory(model: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    write_model(model, tmp_path / "a", format="int4", max_shard_bytes=SHARD)
    made: list[weakref.ref[Tensor]] = []
    empty = torch.empty

    def counted(*shape: Any, **settings: Any) -> Tensor:
        assert sum(ref() is not None for ref in made) <= 4
        out = empty(*shape, **settings)
        if not out.is_meta:
            made.append(weakref.ref(out))
        return out

    monkeypatch.setattr(module.torch, "empty", counted)
    convert(tmp_path / "a", tmp_path / "b", "fp8", 1e12)
    assert len(made) > 50


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_use_is_written_only_when_told(model: CausalLM, tmp_path: Path, overwrite: bool) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    write_model(model, source)
    write_model(model, target, format="bf16", max_shard_bytes=SHARD)
    (target / "README.md").write_text("mine", encoding="utf-8")
    (target / ".model.safetensors.99999.tmp").write_text("left over", encoding="utf-8")
    if not overwrite:
        with pytest.raises(ValueError, match="is not empty; give another folder, or --overwrite"):
            convert(source, target, "int4")
        assert_same_bits(read_model(target), read_model(target))
        return
    convert(source, target, "int4", overwrite=True)
    names = sorted(p.name for p in target.iterdir())
    assert names == ["README.md", "config.json", "generation_config.json", "model.safetensors"]
    assert (target / "README.md").read_text(encoding="utf-8") == "mine"


def test_what_cannot_be_converted_is_refused_in_one_line(
    model: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a"
    write_model(model, source)
    with pytest.raises(ValueError, match="format is 'int3'; valid: 'bf16', 'fp32', 'fp8', 'int4', 'mxfp4'"):
        convert(source, tmp_path / "b", "int3")
    with pytest.raises(ValueError, match="is the source as well"):
        convert(source, source, "bf16", overwrite=True)
    with pytest.raises(ValueError, match=r"config.json is a file; give a folder"):
        convert(source, source / "config.json", "bf16")
    with pytest.raises(FileNotFoundError):
        convert(tmp_path / "nothing", tmp_path / "b", "bf16")
    with monkeypatch.context() as patched:
        patched.setattr(module.shutil, "disk_usage", lambda _: type("", (), {"free": 1000}))
        with pytest.raises(ValueError, match="needs 153,288 bytes, and its disk has 1,000 left"):
            convert(source, tmp_path / "b", "bf16")
    rewrite(source, lambda t: t.pop("model.layers.2.mlp.experts.4.up_proj.weight"))
    with pytest.raises(ValueError, match=r"experts.4.up_proj.weight is missing"):
        convert(source, tmp_path / "b", "bf16")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("form", ["fp32", "bf16", "int4"])
def test_numbers_that_are_none_are_refused_and_nothing_is_left(model: CausalLM, tmp_path: Path, form: str) -> None:
    write_model(model, tmp_path / "a")
    name = "model.layers.2.mlp.experts.4.up_proj.weight"
    rewrite(tmp_path / "a", lambda t: t[name].view(-1)[7:8].fill_(torch.nan))
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinite numbers"):
        convert(tmp_path / "a", tmp_path / "b", form)
    assert list((tmp_path / "b").iterdir()) == []


def test_groups_of_another_width_are_packed_again(model: CausalLM, tmp_path: Path) -> None:
    """A table of INT4 in groups of 64 is kept by int4, and multiplied out by the others."""
    write_model(model, tmp_path / "a", format="int4")
    config = json.loads((tmp_path / "a" / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 64
    (tmp_path / "a" / "config.json").write_text(json.dumps(config), encoding="utf-8")

    def widen(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("weight_packed")]:
            shape = tensors[name.replace("packed", "shape")].tolist()
            weight = int4.dequantize(tensors[name], tensors[name.replace("packed", "scale")], shape)
            tensors[name], tensors[name.replace("packed", "scale")], _ = int4.quantize(weight, 64)

    rewrite(tmp_path / "a", widen)
    convert(tmp_path / "a", tmp_path / "b", "int4")
    convert(tmp_path / "a", tmp_path / "c", "bf16")
    assert_same_bits(read(tmp_path / "a"), read(tmp_path / "b"))
    assert_same_bits(read(tmp_path / "a"), read(tmp_path / "c"))
