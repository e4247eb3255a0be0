"""The benchmarks of Kimi Linear: what they read off is right, and they run, print and draw."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from moonlet.config.presets import preset
from moonlet.generate import Step
from moonlet.model.cache import DeltaCache
from moonlet.model.init import build

# Scripts find each other in their own folder, as they do when started.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import linear_vs_k2
import long_decode
import recall
from small_runs import Taken


def recalled(name: str, *values: float, steps: int = 10) -> Taken:
    """A run of mqar that ended with these accuracies on 4, 8, ... pairs."""
    sizes = [4 * 2**i for i in range(len(values))]
    figures = {f"accuracy_{size}": value for size, value in zip(sizes, values, strict=True)}
    changes = {"train": {"steps": steps}, "data": {"sizes": sizes}, "model": name}
    return Taken(changes, [{"kind": "eval", "step": 10, "accuracy": 0.0, **figures}], 1.0)


def test_accuracy_is_the_mean_over_sizes_and_a_diverged_run_is_the_worst() -> None:
    assert recall.accuracy(recalled("KDA", 1.0, 0.5)) == 0.75
    assert recall.accuracy(recalled("KDA", 1.0, 0.5), 8) == 0.5
    assert recall.accuracy(recalled("KDA", 1.0, 0.5, steps=20)) < 0


def test_the_best_rate_is_that_of_the_highest_accuracy() -> None:
    rates = {"KDA": {0.1: recalled("KDA", 0.2), 0.2: recalled("KDA", 0.9), 0.4: recalled("KDA", 0.9)}}
    assert recall.Found("mqar", [4], 0.1, {}, rates, {}).best("KDA") == 0.2


@pytest.mark.parametrize(("name", "kinds"), [("KDA", "KK"), ("MLA", "MM"), ("MLA, NoPE", "MM"), ("hybrid", "KM")])
def test_architectures_differ_in_what_mixes_tokens_alone(name: str, kinds: str) -> None:
    config = preset("linear-nano").replace(**{k: v for k, v in recall.model_of(name, 64, 2).items() if k != "preset"})
    assert "".join("MK"[config.is_kda(layer)] for layer in range(2)) == kinds
    assert config.mla_use_nope == (name != "MLA")
    assert (config.hidden_size, config.n_routed_experts, config.num_hidden_layers) == (64, 0, 2)


def test_recall_runs_prints_draws_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--steps", "3", "--seeds", "1", "--tasks", "mqar", "stack", "--dtype", "float32"]
    recall.main([*arguments, "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert "| hybrid |" in out
    assert "### stack" in out
    assert (tmp_path / "recall.png").stat().st_size > 10_000
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 4 * 2
    recall.main([*arguments, "--out", str(tmp_path)])
    assert capsys.readouterr().out == out
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == len(lines)


def test_the_twin_differs_in_its_mixers_alone() -> None:
    configs = long_decode.twins("linear-mini", 200_000)
    mini, twin = configs["linear-mini"], configs["all-MLA twin"]
    assert not any(twin.is_kda(layer) for layer in range(twin.num_hidden_layers))
    assert twin.replace(linear_attn_config=mini.linear_attn_config) == mini
    assert mini.context_limit >= 200_000
    with pytest.raises(ValueError, match="k2-nano has no KDA layers"):
        long_decode.twins("k2-nano", 10)


def test_bytes_of_a_cache_are_constant_and_a_tokens() -> None:
    config = preset("linear-nano")
    constant, each = long_decode.cache_bytes(config, torch.float32)
    assert each == 4 * (config.kv_lora_rank + config.qk_rope_head_dim)
    assert constant == 3 * 4 * (4 * 64 * 64 + 3 * 3 * 4 * 64)
    assert build(config).new_cache(1, 100).nbytes == constant + 100 * each


def test_a_filled_cache_is_read_to_its_length() -> None:
    """What lies at the far end of the context changes the step, and what lies behind it does not."""
    model = build("linear-nano").eval()
    step, token = Step(model), torch.tensor([5])

    def logits(at: int) -> torch.Tensor:
        cache = long_decode.filled(model, 300, 8)
        assert cache.lengths.tolist() == [300]
        for layer in cache.layers:
            if isinstance(layer, DeltaCache):
                assert layer.state.abs().sum() > 0
            else:
                layer.entries[:, at] += 3.0
        return step(token, cache)

    assert torch.equal(logits(305), logits(306))
    assert not torch.equal(logits(0), logits(305))
    assert not torch.equal(logits(299), logits(305))


def test_long_decode_runs_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    long_decode.main(["--quick"])
    out = capsys.readouterr().out
    assert "KDA, linear-nano" in out
    assert "3 KDA and 1 MLA layers" in out


def test_equal_time_gives_the_slower_model_fewer_steps() -> None:
    slow = linear_vs_k2.Times({"k2-nano": 100.0, "linear-nano": 125.0}, {}, 1.25)
    assert (slow.slower, slow.fitting(300)) == ("linear-nano", 240)
    quick = linear_vs_k2.Times({"k2-nano": 100.0, "linear-nano": 80.0}, {}, 0.8)
    assert (quick.slower, quick.fitting(300)) == ("k2-nano", 240)
    runs = {name: [recalled(name, 0.5)] for name in linear_vs_k2.MODELS}
    found = linear_vs_k2.Found("text", None, 1, runs, [recalled("shorter", 0.5)])
    assert found.at_equal_time(quick)["k2-nano"] == found.shorter
    assert found.at_equal_time(quick)["linear-nano"] == runs["linear-nano"]


def test_linear_vs_k2_runs_prints_draws_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stories = [
        f"The {a} dog and the {b} cat ran to the tree." for a in ("big", "red", "old") for b in ("sad", "wet", "shy")
    ]
    text = tmp_path / "stories.txt"
    text.write_text("\n<|endoftext|>\n".join(40 * stories), encoding="utf-8")
    arguments = ["--quick", "--steps", "4", "--seeds", "1", "--data", str(text), "--dtype", "float32"]
    (tmp_path / "out").mkdir()
    # As on a machine where the step of one takes twice the other's.
    times = {"step_ms": {"k2-nano": 10.0, "linear-nano": 20.0}, "ratio": 2.0,
             "quartiles": {"k2-nano": [9.0, 11.0], "linear-nano": [19.0, 21.0]}}  # fmt: skip
    (tmp_path / "out" / "step-times.json").write_text(json.dumps(times))
    linear_vs_k2.main([*arguments, "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "### stories.txt (real text)" in out
    assert "2.00 times one of k2-nano" in out
    assert (tmp_path / "out" / "linear-vs-k2.png").stat().st_size > 10_000
    for place, runs in (("story", 7), ("text", 3)):
        taken = [json.loads(line)["changes"] for line in (tmp_path / "out" / place / "runs.jsonl").open()]
        assert len(taken) == runs
        assert [c["train"]["steps"] for c in taken[-3:]] == [4, 4, 2]
        assert taken[-1]["model"]["preset"] == "linear-nano"
    linear_vs_k2.main([*arguments, "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out == out
