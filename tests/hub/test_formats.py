"""Checkpoints as published, in every format: the logits are those of the dequantised twin in transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moonlet.hub.read import read_model
from moonlet.hub.write import write_model
from moonlet.model.model import CausalLM
from moonlet.model.packed import packed_scheme
from tests.hub import official
from tests.hub.official import Form
from tests.parity.compare import error, quiet, text

LOW_BIT, EXACT = 1e-3, 1e-5
FORMS: dict[str, Callable[..., Form]] = {
    "bf16": lambda config, tensors: Form(config, *official.bf16(tensors)),
    "fp8": official.fp8,
    "int4": official.int4,
    "mxfp4": official.mxfp4,
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], official.Tensors]:
    with quiet():
        return official.saved(official.deepseek(), tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], official.Tensors]:
    return official.kimi_linear(tmp_path_factory.mktemp("linear"))


def oracle_of(config: dict[str, Any], twin: official.Tensors, folder: Path) -> Any:
    """transformers' model of the twin's tensors."""
    from transformers import DeepseekV3ForCausalLM, KimiLinearForCausalLM

    kind = KimiLinearForCausalLM if "linear_attn_config" in config else DeepseekV3ForCausalLM
    official.write(folder, config | {"torch_dtype": "float32"}, twin)
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def logit_error(ours: CausalLM, oracle: Any) -> float:
    tokens = text(ours.config.vocab_size, 2, 40)
    return error(ours.eval()(tokens), oracle(tokens, use_cache=False).logits)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", FORMS)
def test_logits_are_the_twins(base: Any, tmp_path: Path, name: str, shards: int) -> None:
    config, tensors = base
    form = FORMS[name](config, tensors)
    folder = official.write(tmp_path / name, form.config, form.tensors, shards)
    ours = read_model(folder, dtype=torch.float32)
    assert logit_error(ours, oracle_of(config, form.twin, tmp_path / "twin")) <= (EXACT if name == "bf16" else LOW_BIT)


@pytest.mark.parametrize("name", FORMS)
def test_logits_of_kimi_linear_are_the_twins(linear: Any, tmp_path: Path, name: str) -> None:
    config, tensors = linear
    form = FORMS[name](config, tensors)
    folder = official.write(tmp_path / name, form.config, form.tensors)
    ours = read_model(folder, dtype=torch.float32)
    assert logit_error(ours, oracle_of(config, form.twin, tmp_path / "twin")) <= (EXACT if name == "bf16" else LOW_BIT)


@pytest.mark.parametrize("name", ["fp8", "int4", "mxfp4"])
def test_every_weight_is_the_twins_rounded_once(base: Any, tmp_path: Path, name: str) -> None:
    form = FORMS[name](*base)
    twin = official.write(tmp_path / "twin", base[0], form.twin)
    official.write(tmp_path / name, form.config, form.tensors)
    exact = read_model(twin).state_dict()
    for dtype in (torch.float32, torch.bfloat16, None):
        read = read_model(tmp_path / name, dtype=dtype, packed=False)
        assert read.dtype == (dtype or torch.bfloat16)
        for key, value in read.state_dict().items():
            assert torch.equal(value, exact[key].to(value.dtype)), key


@pytest.mark.parametrize("name", ["bf16", "int4"])
def test_a_wrapper_is_the_language_model_in_it_and_says_what_is_skipped(base: Any, tmp_path: Path, name: str) -> None:
    form = official.multimodal(FORMS[name](*base))
    folder = official.write(tmp_path / "wrapped", form.config, form.tensors, shards=2)
    lines: list[str] = []
    ours = read_model(folder, dtype=torch.float32, notice=lines.append)
    assert logit_error(ours, oracle_of(base[0], form.twin, tmp_path / "twin")) <= LOW_BIT
    assert lines == [
        "kimi_k25 is computed as the language model in it, without pictures",
        "vision tower and projector: 3 tensors, 0.0 MB, are not read",
    ]


@pytest.mark.parametrize("name", ["fp8", "int4", "mxfp4"])
def test_packed_experts_stay_packed_from_folder_to_folder(base: Any, tmp_path: Path, name: str) -> None:
    form = FORMS[name](*base)
    folder = official.write(tmp_path / name, form.config, form.tensors)
    model, whole = (read_model(folder, dtype=torch.float32, packed=packed) for packed in (True, False))
    assert packed_scheme(model) == name
    assert packed_scheme(whole) is None
    experts = sum(t.nbytes for n, t in form.tensors.items() if ".experts." in n and "weight_shape" not in n)
    assert sum(t.nbytes for n, t in model.state_dict().items() if ".experts." in n) == experts
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert error(model(tokens), whole(tokens)) < EXACT
    with pytest.raises(ValueError, match="packed"):
        model(tokens).sum().backward()
    write_model(read_model(folder), tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    for key, value in form.tensors.items():
        if ".experts." in key:
            assert again[key].dtype == value.dtype
            assert torch.equal(again[key].view(torch.uint8), value.view(torch.uint8)), key
    write_model(read_model(folder), tmp_path / "fp32", format="fp32")
    exact = read_model(official.write(tmp_path / "twin", base[0], form.twin))
    for key, value in read_model(tmp_path / "fp32").state_dict().items():
        if ".experts." in key:
            assert torch.equal(value, exact.state_dict()[key])


EXPERT = "model.layers.2.mlp.experts.3.down_proj.weight"


def drop(name: str) -> Callable[[official.Tensors], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: torch.Tensor) -> Callable[[official.Tensors], object]:
    return lambda tensors: tensors.update({name: value})


def spoil(name: str, value: float) -> Callable[[official.Tensors], object]:
    return lambda tensors: tensors[name].view(-1)[-1:].fill_(value)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("fp8", drop(f"{EXPERT}_scale_inv"), f"{EXPERT}_scale_inv is missing"),
        ("fp8", put(f"{EXPERT}_scale_inv", torch.ones(3, 1)), f"{EXPERT}_scale_inv has shape [3, 1], expected [2, 1]"),
        ("fp8", spoil(f"{EXPERT}_scale_inv", torch.nan), f"{EXPERT}_scale_inv holds NaN or infinite scales"),
        ("fp8", spoil(EXPERT, torch.nan), f"{EXPERT} holds NaN or infinite numbers"),
        ("int4", drop(f"{EXPERT}_packed"), f"{EXPERT} is missing"),
        ("int4", drop(f"{EXPERT}_scale"), f"{EXPERT}_scale is missing"),
        ("int4", drop(f"{EXPERT}_shape"), f"{EXPERT}_shape is missing"),
        ("int4", put(f"{EXPERT}_shape", torch.tensor([160, 95])), f"{EXPERT}_shape says [160, 95], expected [160, 96]"),
        ("int4", spoil(f"{EXPERT}_scale", torch.inf), f"{EXPERT}_scale holds NaN or infinite scales"),
        ("int4", put(f"{EXPERT}_packed", torch.ones(160, 11, dtype=torch.int32)), "has shape [160, 11], expected [160"),
        ("int4", put(f"{EXPERT}_packed", torch.ones(160, 12)), f"{EXPERT}_packed is stored as F32; this reader knows"),
        ("int4", put(f"{EXPERT}_zero_point", torch.ones(2)), f"{EXPERT}_zero_point is not part of this model"),
        ("mxfp4", spoil(f"{EXPERT}_scale", 255), f"{EXPERT}_scale holds NaN or infinite scales"),
        ("bf16", spoil("model.norm.weight", torch.nan), "model.norm.weight holds NaN or infinite numbers"),
        ("bf16", spoil(EXPERT, torch.inf), f"{EXPERT} holds NaN or infinite numbers"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(base: Any, tmp_path: Path, name: str, change: Any, said: str) -> None:
    form = FORMS[name](*base)
    change(form.tensors)
    folder = official.write(tmp_path, form.config, form.tensors)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        read_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["fp8", "int4", "mxfp4"])
def test_low_bits_without_a_word_in_the_config_are_not_guessed_at(base: Any, tmp_path: Path, name: str) -> None:
    form = FORMS[name](*base)
    del form.config["quantization_config"]
    with pytest.raises(ValueError, match="quantization_config does not say how"):
        read_model(official.write(tmp_path, form.config, form.tensors))


def test_a_weight_that_was_left_as_it_is_needs_no_scale(base: Any, tmp_path: Path) -> None:
    form = official.fp8(*base)
    del form.tensors[f"{EXPERT}_scale_inv"]
    form.tensors[EXPERT] = base[1][EXPERT].bfloat16()
    model = read_model(official.write(tmp_path, form.config, form.tensors), dtype=torch.float32)
    assert torch.equal(
        model.state_dict()["model.layers.2.mlp.experts.down_proj"][3], base[1][EXPERT].bfloat16().float()
    )


def test_no_code_of_a_folder_is_run(base: Any, tmp_path: Path) -> None:
    form = official.fp8(*base)
    folder = official.write(tmp_path, form.config, form.tensors)
    assert "auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "modeling_deepseek.py").write_text("raise SystemExit('run')", encoding="utf-8")
    read_model(folder)


def test_a_head_outside_of_the_wrapper_is_refused(base: Any, tmp_path: Path) -> None:
    form = official.multimodal(Form(base[0], *official.bf16(base[1])))
    form.tensors["lm_head.weight"] = torch.ones(2)
    with pytest.raises(ValueError, match=r"holds lm_head.weight with 'language_model\.' and without"):
        read_model(official.write(tmp_path, form.config, form.tensors))
    with pytest.raises(ValueError, match="text_config is None; with model_type 'kimi_k25'"):
        read_model(official.write(tmp_path, form.config | {"text_config": None}, form.tensors))


@pytest.mark.parametrize("changes", [{"n_routed_experts": 1 << 70}, {"hidden_size": 1 << 62}, {"vocab_size": 1 << 64}])
def test_sizes_that_no_tensor_has_are_refused(base: Any, tmp_path: Path, changes: dict[str, int]) -> None:
    config, tensors = base
    folder = official.write(tmp_path, config | changes, tensors)
    with pytest.raises(ValueError, match="must be at most") as caught:
        read_model(folder)
    assert "\n" not in str(caught.value)
