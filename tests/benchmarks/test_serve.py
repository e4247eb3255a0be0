"""The benchmark of serving: its client reads answers as they are sent, and all of it runs and prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import serve
from serve_client import Server

import moonlet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("uvicorn") is None, reason="the server's packages are not installed"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve") / "model"
    moonlet.save(serve.make_model("k2-nano", quick=True), serve.BYTES, folder)
    running = Server(folder, slots=4, threads=1)
    yield running
    running.close()


def test_streamed_and_whole_answers_are_the_same_and_every_token_is_counted(server: Server) -> None:
    prompts = ["Once upon a time", "There was"]
    streamed, whole = (server.ask(prompts, 12, stream=stream) for stream in (True, False))
    assert streamed.texts == whole.texts
    assert len(set(whole.texts)) == 2
    assert streamed.tokens == whole.tokens <= 24
    assert all(0 < first <= streamed.seconds for first in streamed.first)


def test_a_refusal_is_an_error_and_no_wait(server: Server) -> None:
    with pytest.raises(ValueError, match="max_tokens is 0"):
        server.ask(["Once"], 0)


def test_all_of_it_runs_and_prints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    serve.main(["--quick", "--forms", "int4", "--without", "transformers", "llama.cpp", "--json", str(out)])
    printed = capsys.readouterr().out
    assert "moonlet HTTP, streamed, int4" in printed
    assert "int4: " in printed  # what a step's time goes to
    (speeds,) = json.loads(out.read_text(encoding="utf-8"))["tokens_per_s"].values()
    assert all(rate > 0 for found in speeds.values() for rate in found)


def test_prompts_are_all_different() -> None:
    prompts = serve.Prompts()
    assert len({prompts.text(20) for _ in range(50)}) == 50
    assert {len(prompts.ids(n)) for n in (5, 5)} == {5}
