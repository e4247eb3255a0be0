"""The benchmark of Moonlight's shapes counts what a token touches, and its checkpoint is one as published."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

# Scripts find each other in their own folder, as they do when started.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import moonlight_decode
from bandwidth import step_bytes

from moonlet.config import preset
from moonlet.model.count import count
from moonlet.ops.low_bit_codes import Packed

SMALL = preset(moonlight_decode.PRESET).replace(**moonlight_decode.QUICK)


def test_a_token_touches_all_but_the_embedding_and_the_experts_it_is_not_sent_to() -> None:
    config = preset(moonlight_decode.PRESET)
    model, sizes = moonlight_decode.empty_model(config, "meta"), count(config)
    in_bf16 = step_bytes(config, 1, 2) - 2 * config.hidden_size
    saved = round(sizes.routed_experts_active * (2 - 4.5 / 8))
    biases = 2 * 64 * 26  # fp32
    assert moonlight_decode.touched(model) == in_bf16 - saved + biases
    assert sum(t.nbytes for t in [*model.parameters(), *model.buffers()]) < 11.3e9


def test_the_folder_is_a_checkpoint_as_published(tmp_path: Path) -> None:
    moonlight_decode.write_folder(SMALL, tmp_path)
    places = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    expert = "model.layers.2.mlp.experts.15.down_proj."
    file = tmp_path / places[f"{expert}weight_packed"]
    with safe_open(file, "pt") as tensors:
        assert {places[expert + part] for part in ("weight_scale", "weight_shape")} == {file.name}
        out, width = tensors.get_tensor(f"{expert}weight_shape").tolist()
        codes, scale = (tensors.get_tensor(f"{expert}weight_{part}") for part in ("packed", "scale"))
    assert (out, width, codes.dtype, scale.dtype) == (256, 160, torch.int32, torch.bfloat16)
    assert Packed("int4", codes, scale, width).dequantize().std().item() == pytest.approx(0.02, rel=0.1)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"


def test_it_runs_and_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["moonlight_decode.py", "--quick", "--threads", "1"])
    moonlight_decode.main()
    assert "| 1 | " in capsys.readouterr().out
