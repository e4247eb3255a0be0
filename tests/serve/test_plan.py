"""From a client's request to the engine's: what is left out has a value that fits, what is wrong its own name."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from moonlet.serve.app import create_app
from moonlet.serve.limits import Limits
from tests.serve.conftest import Make, in_process

HELLO = [{"role": "user", "content": "Hello"}]


def post(served: Make, path: str, body: dict[str, Any], limits: Limits | None = None) -> httpx.Response:
    async def main() -> httpx.Response:
        limit = limits or Limits()
        async with in_process(create_app([served(limits=limit)], limit, page=())) as http:
            return await http.post(path, json=body)

    return asyncio.run(main())


def test_a_request_without_max_tokens_keeps_within_a_small_limit(served: Make) -> None:
    limits = Limits(max_tokens=3)
    for path, prompt in (("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", {"messages": HELLO})):
        answer = post(served, path, prompt, limits)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] <= 3


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_conversation_that_is_too_long_is_named_by_its_own_field(served: Make, field: str) -> None:
    body = {"messages": [{"role": "user", "content": "y" * 2040}], field: 9}
    answer = post(served, "/v1/chat/completions", body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "messages", "context_length_exceeded")
    assert field in error["message"]
    over = post(served, "/v1/chat/completions", body, Limits(prompt_tokens=100)).json()["error"]
    assert (over["param"], over["code"]) == ("messages", "prompt_tokens_limit")


@pytest.mark.parametrize("name", ["Temperature", "maxTokens", "_", "a[0]", "5"])
def test_an_unknown_field_is_named_whatever_it_looks_like(served: Make, name: str) -> None:
    error = post(served, "/v1/completions", {"prompt": "x", name: 1}).json()["error"]
    assert (error["param"], error["code"]) == (name, "unknown_parameter")
    assert error["message"].startswith(f"unknown parameter {name}; known are model, ")


def test_null_for_what_is_not_here_says_nothing(served: Make) -> None:
    body = {"prompt": "x", "max_tokens": 1}
    assert post(served, "/v1/completions", {**body, "suffix": None, "best_of": None}).status_code == 200
    assert post(served, "/v1/completions", {**body, "suffix": ""}).json()["error"]["code"] == "unsupported_parameter"
    assert post(served, "/v1/completions", {**body, "sufix": None}).json()["error"]["code"] == "unknown_parameter"


def test_equal_prompts_of_a_request_are_answered_as_n_answers_to_one(served: Make) -> None:
    common = {"max_tokens": 8, "seed": 3}
    twice = post(served, "/v1/completions", {**common, "prompt": ["x", "x"]}).json()["choices"]
    both = post(served, "/v1/completions", {**common, "prompt": "x", "n": 2}).json()["choices"]
    assert twice == both
    assert twice[0]["text"] != twice[1]["text"]
