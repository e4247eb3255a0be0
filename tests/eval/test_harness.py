"""lm-eval's view of a model is our own: equal likelihoods, and a task of its runs on a local file, offline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moonlet.data.story import StoryWorld
from moonlet.eval import tasks
from moonlet.eval.tasks import STORY_TASK, run_tasks, table, write_story_task
from moonlet.folder import save
from moonlet.generate import generate
from moonlet.text import ByteTokenizer

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

PAIRS = [
    ("Tom had a", " hat"),
    ("Tom had a", " cat and a hat"),
    ("", "alone"),
    ("Who?", " M\u00eda"),
]


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model(vocab_size=272, max_position_embeddings=2048, hidden_size=16, num_hidden_layers=1)


@pytest.fixture(scope="module")
def adapter(model: Any) -> Any:
    from moonlet.eval.harness import MoonletLM

    return MoonletLM(model, ByteTokenizer())


def request(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def lines_of(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def nats(model: Any, context: str, continuation: str) -> float:
    tokenizer = ByteTokenizer()
    before = len(tokenizer.encode(context))
    ids = torch.tensor([[0, *tokenizer.encode(context + continuation)]])
    return float(model.token_losses(ids[:, :-1], ids[:, 1:])[0, before:].sum())


def test_loglikelihoods_are_our_token_losses(model: Any, adapter: Any) -> None:
    found = adapter.loglikelihood([request("loglikelihood", *pair) for pair in PAIRS])
    for (context, continuation), (value, greedy) in zip(PAIRS, found, strict=True):
        assert value == pytest.approx(-nats(model, context, continuation), abs=1e-4)
        assert greedy is False


def test_rolling_loglikelihood_counts_every_token_once(model: Any, adapter: Any) -> None:
    from moonlet.eval.harness import MoonletLM

    text = "Tom and Mia went to the lake. " * 3
    (whole,) = adapter.loglikelihood_rolling([request("loglikelihood_rolling", text)])
    assert whole == pytest.approx(-nats(model, "", text), abs=1e-3)
    short = MoonletLM(model, ByteTokenizer(), context=32)
    (windowed,) = short.loglikelihood_rolling([request("loglikelihood_rolling", text)])
    assert windowed == pytest.approx(whole, rel=0.2)
    assert adapter.loglikelihood_rolling([request("loglikelihood_rolling", "")]) == [0.0]


def test_generation_is_greedy_and_ends_at_a_stop_text(model: Any, adapter: Any) -> None:
    settings = {"until": [], "max_gen_toks": 12}
    prompts = ["Tom", "Mia ran", "A"]
    written = adapter.generate_until([request("generate_until", p, settings) for p in prompts])
    own = [generate(model, ByteTokenizer(), p, max_new_tokens=12, temperature=0)[len(p) :] for p in prompts]
    assert written == own
    stop = own[0][3]
    (cut,) = adapter.generate_until([request("generate_until", "Tom", settings | {"until": stop})])
    assert cut == own[0][: own[0].index(stop)]
    warm = settings | {"do_sample": True, "temperature": 1.0}
    assert adapter.generate_until([request("generate_until", "Tom", warm)]) != [own[0]]


def test_a_context_beyond_the_model_is_an_error(model: Any) -> None:
    from moonlet.eval.harness import MoonletLM

    with pytest.raises(ValueError, match=r"context is 4096; it must lie in 1\.\.2048"):
        MoonletLM(model, ByteTokenizer(), context=4096)


def test_the_story_task_holds_the_worlds_questions(tmp_path: Path) -> None:
    file = write_story_task(tmp_path, stories=3)
    task = json.loads(file.read_text())
    examples = lines_of(Path(task["dataset_kwargs"]["data_files"]["test"]))
    asked = [(s.text, q) for s in StoryWorld(0).stories(3, split="test") for q in s.questions]
    assert [e["choices"][e["label"]] for e in examples] == [q.answer for _, q in asked]
    assert all(e["prompt"] == f"{text}\nQ: {q.text}\nA:" for e, (text, q) in zip(examples, asked, strict=True))


@pytest.mark.slow
def test_the_story_task_runs_offline_and_agrees_with_our_likelihoods(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network call would fail: nothing can be resolved."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: pytest.fail("the network was asked"))
    save(model, ByteTokenizer(), tmp_path / "model")
    found = run_tasks(tmp_path / "model", [STORY_TASK], limit=6)
    examples = lines_of(write_story_task(tmp_path).with_suffix(".jsonl"))[:6]
    right = 0
    for e in examples:
        losses = [nats(model, e["prompt"], f" {choice}") for choice in e["choices"]]
        right += losses.index(min(losses)) == e["label"]
    assert found[STORY_TASK]["acc"] == pytest.approx(right / 6)
    assert f"{right / 6:.4f}" in table({"model": found})


@pytest.mark.slow
def test_tasks_of_a_folder_run_as_do_lm_evals_own_and_unknown_ones_are_named(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(model, ByteTokenizer(), tmp_path / "model")
    mine = write_story_task(tmp_path / "mine", stories=1)
    task = json.loads(mine.read_text()) | {"task": "my_task"}
    mine.write_text(json.dumps(task))
    found = run_tasks(tmp_path / "model", ["my_task"], tmp_path / "mine", limit=2)
    assert set(found) == {"my_task"}
    # As if lm-eval brought this one task along; reading the names of its own takes seconds.
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "mine" / "manager.py"))
    assert run_tasks(tmp_path / "model", ["my_task"], limit=2) == found
    with pytest.raises(ValueError, match="knows no task nonsense_task"):
        run_tasks(tmp_path / "model", ["nonsense_task"], limit=2)


def test_a_missing_package_is_one_line_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "moonlet\[lm-eval\]"'):
        run_tasks(tmp_path, [STORY_TASK])
