"""`moonlet inspect` prints exact sizes of any preset, folder or run, quickly and within the terminal's width."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moonlet.cli.inspect import inspect
from moonlet.config import ModelConfig, preset, recipe_from_dict, toml
from moonlet.config.target import read_target
from moonlet.model.describe import group_layers
from moonlet.plot.numbers import human, human_bytes


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """output(*arguments, width=80): what inspect prints."""

    def run(target: str, *overrides: str, width: int = 80, **options: Any) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        inspect(target, list(overrides), **options)
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("kimi-k2", ("1,026,408,232,448", "30,512,690,688", "31,687,095,808", "32,861,500,928", "70,272", "2,498,560")),
        ("deepseek-v3", ("671,026,419,200", "35,698,939,392", "36,625,618,432", "37,552,297,472")),
        ("moonlight-16b-a3b", ("15,960,110,208", "2,243,687,552", "2,579,231,872", "0.072169")),
    ],
)
@pytest.mark.parametrize("width", [80, 120])
def test_the_published_numbers_are_printed_within_the_width(
    output: Callable[..., str], name: str, numbers: tuple[str, ...], width: int
) -> None:
    text = output(name, width=width)
    assert [number for number in numbers if number not in text] == []
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text  # nothing was cut off


def test_equal_layers_are_collapsed(output: Callable[..., str]) -> None:
    text = output("kimi-k2")
    assert "model.layers.1-60" in text
    assert "60 x" in text
    assert text.count("q_a_proj") == 2


def test_a_trillion_parameters_take_a_moment(output: Callable[..., str]) -> None:
    begin = time.perf_counter()
    output("kimi-k2")
    assert time.perf_counter() - begin < 5


def test_json_holds_the_same_numbers(output: Callable[..., str]) -> None:
    data = json.loads(output("kimi-k2", as_json=True))
    assert data["parameters"]["total"] == 1_026_408_232_448
    assert data["active_per_token"]["with_head_and_embedding"] == 32_861_500_928
    assert data["cache_bytes_per_token"] == {"latent_bf16": 70_272, "full_heads_bf16": 2_498_560}
    assert data["tensors"]["model.layers.60.mlp.experts.gate_up_proj"] == [384, 4096, 7168]
    parts = {k: v for k, v in data["parameters"].items() if k != "total"}
    assert sum(parts.values()) == data["parameters"]["total"]


def test_overrides_change_the_model(output: Callable[..., str]) -> None:
    plain = json.loads(output("k2-nano", as_json=True))
    changed = json.loads(output("k2-nano", "hidden_size=128", "num_hidden_layers=2", as_json=True))
    assert changed["tensors"]["model.norm.weight"] == [128]
    assert plain["layers"] != 2
    assert changed["layers"] == 2


def test_reads_model_folders_config_files_and_run_folders(tmp_path: Path) -> None:
    config = preset("k2-nano").replace(hidden_size=96)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    assert read_target(str(tmp_path / "model")) == config
    assert read_target(str(tmp_path / "model" / "config.json")) == config
    recipe = recipe_from_dict({"model": {"hidden_size": 96}, "train": {"steps": 1}})
    (tmp_path / "recipe.toml").write_text(toml.dumps(recipe.to_dict()), encoding="utf-8")
    assert read_target(str(tmp_path)).hidden_size == 96


def test_errors_name_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'kimi-k2'"):
        inspect("kimi-k3")
    with pytest.raises(ValueError, match=r"did you mean 'model\.hidden_size'"):
        inspect("k2-nano", ["hiden_size=3"])
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        inspect(str(tmp_path))


def test_layers_collapse_only_next_to_their_like() -> None:
    shapes = {f"model.layers.{i}.w": (2, 3 if i in (2, 3) else 4) for i in range(6)}
    groups = group_layers({"a": (1,), **shapes, "z": (5,)})
    assert [g.layers for g in groups] == [None, range(2), range(2, 4), range(4, 6), None]
    assert [g.size for g in groups] == [1, 8, 6, 8, 5]


@pytest.mark.parametrize(
    ("number", "text"),
    [(7, "7"), (999, "999"), (1000, "1.00K"), (12_345, "12.3K"), (999_999, "1.00M"), (1_026_408_232_448, "1.03T")],
)
def test_human_numbers_have_three_digits(number: int, text: str) -> None:
    assert human(number) == text


def test_human_bytes_count_in_1024() -> None:
    assert (human_bytes(70_272), human_bytes(512), human_bytes(2**40)) == ("68.6 KiB", "512 B", "1.00 TiB")


def test_moe_free_models_print(
    output: Callable[..., str], tiny_config: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    config = tiny_config(n_routed_experts=0, n_shared_experts=0)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    text = output(str(tmp_path))
    assert "routed experts" not in text
    assert "100.00%" in text  # every parameter is active
