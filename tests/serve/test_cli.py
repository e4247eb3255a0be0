"""`moonlet serve`: a real process, from a folder to an answer to a clean end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

import moonlet
from moonlet.cli import serve
from moonlet.cli.main import main
from moonlet.serve.run import is_loopback, listen
from moonlet.text import ByteTokenizer
from tests.serve.conftest import model  # noqa: F401

KEY = "a-key-for-the-test"


@pytest.fixture(scope="module")
def folder(model: object, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    path = tmp_path_factory.mktemp("models") / "tiny"
    moonlet.save(model, ByteTokenizer(), path)
    return path


def test_it_serves_says_where_and_stops_when_told(folder: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(KEY + "\n")
    command = [sys.executable, "-m", "moonlet", "serve", str(folder), f"last={folder}", "--port", "0"]
    command += ["--api-key-file", str(key), "--chat-form", "k2-0905", "--slots", "2"]
    environment = {k: v for k, v in os.environ.items() if k != "MOONLET_API_KEY"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        told = server.stdout.readline()
        found = re.fullmatch(r"serving tiny, last at (http://127\.0\.0\.1:\d+)\n", told)
        assert found, told
        curl = server.stdout.readline()
        assert curl.startswith(f"  curl {found[1]}/v1/completions -H 'Authorization: Bearer KEY'")
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=found[1], timeout=30) as http:
            assert http.get("/health").json() == {"status": "ok"}
            assert http.get("/v1/models").status_code == 401
            models = http.get("/v1/models", headers=headers).json()["data"]
            assert [(one["id"], one["chat"]) for one in models] == [("tiny", "k2-0905"), ("last", "k2-0905")]
            asked = {"model": "last", "messages": [{"role": "user", "content": "x"}], "seed": 1, "max_tokens": 3}
            assert http.post("/v1/chat/completions", json=asked, headers=headers).json()["usage"]["prompt_tokens"] > 1
            big = b"a" * (10 << 20)
            refused = http.post("/v1/completions", content=big, headers={**headers, "Content-Type": "application/json"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_bytes_limit")
        server.send_signal(signal.SIGTERM)
        rest, log = server.communicate(timeout=30)
        assert server.returncode == 0, log
        assert "Traceback" not in log
        assert KEY not in told + curl + rest + log
    finally:
        server.kill()
        server.wait()


def test_a_second_interrupt_ends_at_once(folder: Path) -> None:
    command = [sys.executable, "-m", "moonlet", "serve", str(folder), "--port", "0", "--max-drain-seconds", "60"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        asked = {"prompt": "x", "max_tokens": 1900, "n": 8, "stream": True, "logit_bias": {"1": -100}}
        with httpx.stream("POST", f"{address}/v1/completions", json=asked, timeout=30) as answer:
            assert next(answer.iter_lines())
            server.send_signal(signal.SIGINT)
            with contextlib.suppress(httpx.ConnectError):  # then it has heard, and takes nothing new
                while httpx.get(f"{address}/health"):
                    time.sleep(0.01)
            began = time.monotonic()
            server.send_signal(signal.SIGINT)
            _, log = server.communicate(timeout=30)
        assert time.monotonic() - began < 8
        assert server.returncode == 0, log
        assert "Traceback" not in log
    finally:
        server.kill()
        server.wait()


def test_a_port_is_taken_before_the_models_are_loaded() -> None:
    first = listen("127.0.0.1", 0)
    with pytest.raises(ValueError, match="choose another --port"):
        listen("127.0.0.1", first.getsockname()[1])
    first.close()


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["moonlet", "serve", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_mistakes_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    listening = listen("127.0.0.1", 0)
    taken = listening.getsockname()[1]
    for arguments, says in (
        ([str(tmp_path / "nothing")], "no such folder"),
        ([str(folder), str(folder)], "two models are called tiny"),
        ([str(folder), "--api-key", "short"], "at least 8 characters"),
        ([str(folder), "--api-key-file", str(empty)], "is empty"),
        ([str(folder), "--api-key", KEY, "--api-key-file", str(empty)], "two API keys"),
        ([str(folder), "--chat-form", "klingon"], "unknown"),
        ([str(folder), "--max-n", "0"], "limit n is 0"),
        ([str(folder), "--port", str(taken)], "choose another --port"),
        ([f"bad name={folder}", "--port", "0"], "no name for a model"),
    ):
        line = refused(arguments, capsys, monkeypatch)
        assert says in line, line
        assert KEY not in line
    listening.close()


def test_a_missing_package_is_named_with_its_cure(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else object())
    assert 'serving needs uvicorn; install with: pip install "moonlet[serve]"' in refused(
        [str(folder)], capsys, monkeypatch
    )


def test_names_of_models() -> None:
    assert [serve._name(Path(path)) for path in ("/r/x", "/r/x/model", "/r/x/checkpoints/step-200", "/r/-a b")] == [
        "x",
        "x",
        "x@step-200",
        "a-b",
    ]


def test_what_only_this_machine_reaches() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org")))
