"""Compiled regions compute what the written ones do, and a run knows whether it was compiled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from moonlet.cli import job
from moonlet.config import ModelConfig
from moonlet.config.sections import OptimSettings, TrainSettings
from moonlet.model.init import build
from moonlet.model.model import CausalLM
from moonlet.ops.region import REGIONS
from moonlet.optim.optimizer import build_optimizer
from moonlet.train import compile as compiling
from moonlet.train.compile import Compiler, Decision, decide
from moonlet.train.run import Run
from tests.conftest import GQA, HYBRID
from tests.train import tiny
from tests.train.test_resume import assert_a_cut_changes_nothing

CPU = torch.device("cpu")


def gradients(
    model: CausalLM, tokens: torch.Tensor, compiler: Compiler | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.train()
    model.zero_grad()
    if compiler is None:
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    else:
        with compiler.step():
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(model: CausalLM, tokens: torch.Tensor, compiler: Compiler) -> None:
    loss, plain = gradients(model, tokens, None)
    again, compiled = gradients(model, tokens, compiler)
    torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-6)
    assert plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 61, (rows, length + 1), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [{}, GQA, HYBRID], ids=["k2", "gqa", "linear"])
def test_traced_regions_equal_the_written_ones(tiny_model: Callable[..., Any], kind: dict[str, Any]) -> None:
    model, compiler = tiny_model(**kind), Compiler("aot_eager")
    for rows, length in ((2, 9), (1, 1)):
        assert_same(model, tokens(rows, length), compiler)


def test_layers_share_what_was_compiled_and_evaluation_compiles_nothing(tiny_model: Callable[..., Any]) -> None:
    compiled: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    model, compiler = tiny_model(num_hidden_layers=2, vocab_size=64), Compiler(count)
    optimizer = build_optimizer(model, OptimSettings())
    tiny.step(model, [tiny.batch(0)], optimizer, compiler=compiler)
    kinds = len(compiled)
    assert kinds >= 4  # norm, projections, dense, shared experts
    tiny.step(model, [tiny.batch(1)], optimizer, compiler=compiler)
    assert len(compiled) == kinds
    model.eval().token_losses(*tiny.batch(2, rows=3))
    assert len(compiled) == kinds
    deep = tiny_model(num_hidden_layers=5, vocab_size=64)
    tiny.step(deep, [tiny.batch(0)], compiler=compiler)
    assert len(compiled) == kinds


def test_fifty_compiled_steps_lose_as_much(tiny_model: Callable[..., Any]) -> None:
    losses = []
    for compiler in (None, Compiler("aot_eager")):
        model = tiny_model(num_hidden_layers=2, vocab_size=64)
        optimizer = build_optimizer(model, OptimSettings())
        batch = tiny.batch(0)
        losses.append([tiny.step(model, [batch], optimizer, lr=1e-3, compiler=compiler).loss for _ in range(50)])
    assert losses[0][-1] < 0.8 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_regions_run_as_written_once_a_step_has_failed(tiny_model: Callable[..., Any]) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise RuntimeError("no such instruction")

    model = tiny_model(vocab_size=64, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"torch\.compile failed .*train\.compile=off"):
        tiny.step(model, [tiny.batch(0)], compiler=Compiler(broken))
    assert all(piece.instead is None for piece in REGIONS)
    assert tiny.step(model, [tiny.batch(0)]).problem is None


@pytest.mark.parametrize(
    ("settings", "device", "recorded", "expected"),
    [
        ({"compile": "off", "minutes": 60.0}, "cuda", None, "off"),
        ({"compile": "on", "steps": 1}, "cpu", None, "on"),
        ({"compile": "on", "steps": 1}, "cpu", "off", "on"),
        ({"minutes": 9.0}, "cuda", None, "off"),
        ({"minutes": 10.0}, "cuda", None, "on"),
        ({"steps": 2000}, "cuda", None, "on"),
        ({"steps": 2000}, "cpu", None, "off"),
        ({"steps": 1}, "cuda", "on", "on"),
        ({"minutes": 60.0}, "cuda", "off", "off"),
    ],
)
def test_when_a_run_is_compiled(
    settings: dict[str, Any], device: str, recorded: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "why_not", lambda device: "")
    assert decide(TrainSettings(**settings), torch.device(device), recorded).word == expected


def test_without_a_compiler_auto_goes_on_in_one_line_and_on_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "compiler_name", lambda: "")
    monkeypatch.setattr(compiling, "worthwhile", lambda settings, device: Decision(True, "a long run"))
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        recipe = tiny.recipe(tmp_path, "train.steps=5", "train.eval_bytes=64")
        job.start(recipe, tmp_path / "run", Console(file=file, width=200))
    lines = [line for line in (tmp_path / "out").read_text(encoding="utf-8").splitlines() if "compile" in line]
    assert lines == ["compile    off: this machine cannot: no C++ compiler (install g++ or clang)"]
    facts = Run.open(tmp_path / "run").facts()
    assert (facts["compile"], facts["compile_why"]) == (
        "off",
        "this machine cannot: no C++ compiler (install g++ or clang)",
    )
    with pytest.raises(ValueError, match=r'train\.compile is "on" .* no C\+\+ compiler .*train\.compile=off'):
        job.start(tiny.recipe(tmp_path, "train.compile=on"), tmp_path / "other", tiny.quiet())


def test_a_run_records_what_decides_its_bits_and_its_speed(tmp_path: Path) -> None:
    job.start(tiny.recipe(tmp_path, "train.steps=5", "train.eval_bytes=64"), tmp_path / "run", tiny.quiet())
    facts = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert (facts["compute_dtype"], facts["compute_dtype_why"]) == ("float32", "asked for")
    assert facts["compile"] == "off"
    assert "cpu" in facts["compile_why"]
    assert {"native_kernels", "keeps_freed_memory", "threads"} <= set(facts)
    job.go_on(Run.open(tmp_path / "run"), tiny.quiet())
    assert Run.open(tmp_path / "run").facts()["compile_why"] == "as at the start"


@pytest.mark.slow
def test_what_inductor_makes_equals_the_written_regions_and_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = compiling.why_not(CPU)
    if problem:
        pytest.skip(problem)
    # Both parts have the same kinds of regions and the same odd number of tokens, which are compiled once.
    model = build(ModelConfig(**tiny.MODEL, first_k_dense_replace=0, vocab_size=64, initializer_range=0.2))
    router = model.model.layers[1].mlp.gate
    router.e_score_correction_bias[0] = -9.0  # nobody is sent to this expert
    assert_same(model, tokens(3, 7), Compiler())
    assert router.load[0] == 0 < router.load[1]
    shape = ("model.first_k_dense_replace=0", "train.seq_len=7", "train.micro_batch_size=3", "train.batch_size=6")
    recipe = tiny.recipe(tmp_path, "train.compile=on", "train.save_every=2", *shape)
    assert_a_cut_changes_nothing(recipe, tmp_path, monkeypatch)
    assert Run.open(tmp_path / "run").facts()["compile"] == "on"
