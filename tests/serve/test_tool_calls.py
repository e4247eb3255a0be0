"""500 calls of functions with arguments that nobody planned, by a model that knows nothing: all are valid."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from moonlet.serve.app import create_app
from moonlet.serve.limits import Limits
from moonlet.serve.models import serve_model
from moonlet.text import ByteTokenizer
from moonlet.text.chat import form_named
from tests.generate.schemas import random_object, valid
from tests.serve.conftest import on_socket, tiny_engine

pytest.importorskip("llguidance")

REQUESTS, EACH = 50, 10


def asked(number: int, draw: random.Random) -> dict[str, Any]:
    """A request whose every answer must call a function; of two where the number is odd."""
    tools = [
        {"type": "function", "function": {"name": f"f{number}_{which}", "parameters": random_object(draw, 1)}}
        for which in range(1 + number % 2)
    ]
    return {
        "messages": [{"role": "user", "content": f"request {number}"}],
        "tools": tools,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "n": EACH,
        "seed": number,
    }


def test_arguments_of_500_calls_of_500_are_valid_under_their_schemas(
    tiny_model: Callable[..., Any], tokenizer: ByteTokenizer
) -> None:
    limits = Limits(n=EACH, queue=REQUESTS * EACH, live=REQUESTS)
    draw = random.Random(0)
    bodies = [asked(number, draw) for number in range(REQUESTS)]

    async def ask(http: httpx.AsyncClient, body: dict[str, Any]) -> int:
        answer = await http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in body["tools"]}
        choices = answer.json()["choices"]
        for choice in choices:
            assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None), choice
            (call,) = choice["message"]["tool_calls"]
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            assert valid(json.loads(arguments), schemas[name]), (arguments, schemas[name])
        return len(choices)

    async def main(address: str) -> list[int]:
        async with httpx.AsyncClient(
            base_url=address, timeout=120, limits=httpx.Limits(max_connections=REQUESTS)
        ) as http:
            return await asyncio.gather(*(ask(http, body) for body in bodies))

    # Room for the longest declaration and the longest call, a byte a token.
    model = tiny_model(vocab_size=tokenizer.vocab_size, num_hidden_layers=2, max_position_embeddings=8192)
    form = form_named("k2-0905")
    one = serve_model(
        "tiny", model, tokenizer, lambda: tiny_engine(model, tokenizer, 32), slots=32, limits=limits, form=form
    )
    with on_socket(create_app([one], limits, page=())) as address:
        assert sum(asyncio.run(main(address))) == 500
