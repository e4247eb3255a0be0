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
from moonlet.model.flops import flops_per_token
from moonlet.plot.numbers import SI, human, human_bytes, human_time


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
        (
            "kimi-linear-48b-a3b",
            (
                "49,122,681,728",
                "2,729,485,184",
                "3,106,972,544",
                "3,484,459,904",
                "8,064",
                "41,943,040",
                "1,474,560",
                "20 KDA, 7 MLA",
            ),
        ),
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


def test_layers_that_alternate_are_listed_once(output: Callable[..., str]) -> None:
    text = output("kimi-linear-48b-a3b")
    assert "model.layers.3, 7, 11, 15, 19, 23, 26" in text
    assert ("19 x" in text, "7 x" in text) == (True, True)
    assert (text.count("kv_b_proj"), text.count("b_proj")) == (
        1,
        1 + 3 * 2,
    )  # b_proj, f_b_proj and g_b_proj of two kinds
    data = json.loads(output("kimi-linear-48b-a3b", as_json=True))
    assert data["kda_layers"] == [i for i in range(26) if i % 4 != 3]
    assert data["cache_bytes_constant"] == {"states_fp32": 41_943_040, "convolutions_bf16": 1_474_560}
    assert data["parameters"]["kda"] == 20 * 39_514_272


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


def test_layers_collapse_into_the_first_of_their_like() -> None:
    shapes = {f"model.layers.{i}.w": (2, 3 if i in (2, 3) else 4) for i in range(6)}
    groups = group_layers({"a": (1,), **shapes, "z": (5,)})
    assert [g.layers for g in groups] == [None, (range(2), range(4, 6)), (range(2, 4),), None]
    assert [(g.size, g.number) for g in groups] == [(1, 1), (8, 4), (6, 2), (5, 1)]


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


def test_flops_are_printed_by_part(output: Callable[..., str]) -> None:
    text = output("kimi-k2", context=1000)
    config = preset("kimi-k2")
    for part, number in flops_per_token(config, 1000).parts.items():
        if number:
            assert f" {human(number, SI)} " in text, part
    data = json.loads(output("kimi-k2", context=1000, as_json=True))["flops_per_token"]
    assert data["context"] == 1000
    assert (
        data["forward"]
        == {"total": sum(flops_per_token(config, 1000).parts.values())} | flops_per_token(config, 1000).parts
    )
    assert data["training"] == 3 * data["forward"]["total"]
    # A decode step attends to the latents: 512 + 64 and 512 wide, in place of 192 and 128.
    assert data["decode"]["scores"] * 320 == data["forward"]["scores"] * (576 + 512)


def test_the_network_is_drawn_unless_told_not_to(output: Callable[..., str]) -> None:
    assert "⊕" in output("kimi-k2")
    assert "⊕" not in output("kimi-k2", draw=False)
    assert "⊕" not in output("kimi-k2", width=60)  # an outline


def test_the_drawing_goes_to_a_file(output: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "k2.svg"
    assert "k2.svg" in "".join(output("k2-nano", svg=file).split())
    assert file.read_text(encoding="utf-8").startswith("<svg")
    data = output("k2-nano", svg=file, as_json=True)
    assert json.loads(data)["name"] == "k2-nano"


def test_grouped_queries_and_tied_embeddings_print(output: Callable[..., str]) -> None:
    text = output("k2-nano", "kv_lora_rank=null", "num_key_value_heads=2", "tie_word_embeddings=true")
    assert "GQA, 8 heads" in text
    assert "the embedding's matrix" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_an_impossible_context_names_the_limit() -> None:
    with pytest.raises(ValueError, match=r"1\.\.2048"):
        inspect("k2-nano", context=4096)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "3 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 hours"), (200_000, "2.3 days"), (1e9, "31.7 years")],
)
def test_times_have_a_unit_a_person_would_choose(seconds: float, text: str) -> None:
    assert human_time(seconds) == text
