"""docs/serving.md is true: its limits are the code's, its options exist, and its snippet runs."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from moonlet.serve.app import create_app
from moonlet.serve.limits import Limits, option
from tests.serve.conftest import Make, on_socket

TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def test_the_table_of_limits_is_the_code() -> None:
    rows = dict(re.findall(r"^\| `(--max-[a-z-]+)` \| ([0-9.]+) \|", TEXT, re.MULTILINE))
    assert rows == {option(f.name): str(f.default) for f in fields(Limits)}


def test_every_option_named_exists() -> None:
    from typer.main import get_command

    from moonlet.cli.main import app

    command: Any = get_command(app)
    known = {name for parameter in command.commands["serve"].params for name in parameter.opts}
    named = set(re.findall(r"--[a-z][a-z-]+", TEXT))
    assert named <= known
    assert {option(f.name) for f in fields(Limits)} <= known
    for line in re.findall(r"^moonlet (serve .*)$", TEXT, re.MULTILINE):
        assert command.commands["serve"].make_context("serve", shlex.split(line)[1:]).params["paths"]


def test_the_snippet_of_the_client_runs(served: Make, capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    with on_socket(create_app([served("quickstart")], page=())) as address:
        exec(compile(snippet.replace("http://127.0.0.1:8000", address), "serving.md", "exec"), {})
    assert capsys.readouterr().out
