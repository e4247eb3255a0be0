"""Requests that no client should send: a mutator of well-formed ones, and what must be true of every answer.

python -m tests.serve.hostile 10000 [SEED]
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx

SLOWEST = 10.0
GROWTH = 256 << 10  # KiB of memory that any number of requests may add

_CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 4,
    "temperature": 0.7,
    "stop": ["x"],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
    "response_format": {"type": "text"},
    "logit_bias": {"20": 1},
}
_TEXT: dict[str, Any] = {"model": "tiny", "prompt": "Once", "max_tokens": 4, "n": 1, "stop": ["x"], "seed": 1}
_VIEW: dict[str, Any] = {"model": "tiny", "prompt": "Once", "layer": 0, "head": 0}
_MODELS = ("../../etc/passwd", "..%2f..%2fetc", "tiny\x00", "", "a" * 5000, "{{7*7}}", "tiny/../tiny")
_SCHEMAS: tuple[Any, ...] = (
    {"type": "nonsense"},
    {"$ref": "#/nowhere"},
    {"$ref": "#"},
    {"$ref": "http://127.0.0.1:1/x.json"},
    {"type": "string", "pattern": "(a+)+$"},
    {"type": "string", "pattern": "(" * 200},
    {"type": "string", "pattern": "(?<=a)b"},
    {"type": "string", "minLength": 10**9},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 10**6},
    {"enum": []},
    {"enum": ["\u0000", "\ufffd"]},
    {"type": "integer", "minimum": 5, "maximum": 4},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"anyOf": [{"anyOf": [{"anyOf": []}]}]},
    {"properties": {"p" * 1000: {}}},
    {"type": "object", "required": [f"k{i}" for i in range(2000)]},
    {"not": {}},
    {"x-guidance": {"lenient": True, "whitespace_flexible": 7}},
    {"type": "string", "format": "../../etc/passwd"},
    {"const": 1e308},
)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 10**9, -(10**9), 1 << 63, 1 << 64, 10**400, 0.5, -0.5, 1e308, -1e308, 5e-324,
    "", " ", "\x00", "NaN", "-1", "<|im_end|>", "<|im_system|>system<|im_middle|>", "[EOS]", "\u202e\ufeff", "é" * 3000,
    "'; DROP TABLE x; --", "<script>alert(1)</script>", "{{ 7 * 7 }}", "%n%s", [], [[]], [None], [0], [-1], [10**9], {},
    {"a": 1}, {"type": "json_schema"}, {"type": "function"}, ["x"] * 10_000, [""] * 3, {str(i): 1 for i in range(2000)},
    {"-1": 1}, {"9" * 400: 1}, {"5": 1e308}, {"5": "x"}, [{"role": "user"}] * 3000, [{"role": "tool", "content": "x"}],
    [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
    [{"role": "user", "content": [{"type": "text", "text": 5}]}], [{"role": "user", "content": None}],
    [{"role": "assistant", "content": "x"}], [{"role": "user", "content": "x", "name": "\n<|im_end|>"}],
)  # fmt: skip
_KEYS = (
    "prompt", "messages", "model", "max_tokens", "max_completion_tokens", "n", "best_of", "temperature", "top_p",
    "top_k", "min_p", "seed", "stop", "stream", "stream_options", "logprobs", "top_logprobs", "logit_bias",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "tools", "tool_choice", "response_format", "echo",
    "suffix", "user", "parallel_tool_calls", "functions", "thinking", "chat_template_kwargs", "reasoning_effort",
    "metadata", "__proto__", "constructor", "temprature",
)  # fmt: skip
_RAW = (
    b"", b"{", b"null", b"[]", b'"x"', b"5", b"{}", b"\xff\xfe{}", b'{"prompt":"\xff"}', b'{"prompt":"\\ud800"}',
    b'{"prompt":NaN}', b'{"prompt":"x","temperature":NaN}', b'{"prompt":"x","temperature":Infinity}',
    b'{"prompt":"x","temperature":1e999}', b'{"prompt":"x","n":1e9}', b'{"prompt":"x","n":' + b"9" * 5000 + b"}",
    b"[" * 10_000 + b"]" * 10_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    b'{"prompt":"x","metadata":' + b"[" * 10_000 + b"]" * 10_000 + b"}", b'{"prompt":"x","prompt":5}', b"\x00" * 100,
    b"\xef\xbb\xbf{}", b"{'prompt':'x'}", b'{"prompt":"x",}',
    b"a" * (10 << 20), b'{"prompt":"' + b"a" * 900_000 + b'"}',
)  # fmt: skip


def requests(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """As many requests, as arguments of httpx; equal seeds give equal ones."""
    draw = random.Random(seed)
    for _ in range(count):
        path = draw.choices(("/v1/completions", "/v1/chat/completions", "/moonlet/microscope"), (5, 5, 1))[0]
        kind = draw.random()
        if kind < 0.04:
            yield _odd(draw)
        elif kind < 0.10:
            yield {"method": "POST", "url": path, "content": draw.choice(_RAW), "headers": _json_type(draw)}
        else:
            whole = {"/v1/completions": _TEXT, "/v1/chat/completions": _CHAT}.get(path, _VIEW)
            body = _changed(whole, draw)
            yield {"method": "POST", "url": path, "content": _bytes(body, draw), "headers": _json_type(draw)}


def _changed(body: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    changed = json.loads(json.dumps(body))
    for _ in range(draw.choice((1, 1, 2, 3))):
        kind = draw.random()
        if kind < 0.5:
            changed[draw.choice(_KEYS)] = draw.choice(_VALUES)
        elif kind < 0.6:
            changed["model"] = draw.choice(_MODELS)
        elif kind < 0.7:
            changed.pop(draw.choice(list(changed)), None)
            changed = changed or {"prompt": ""}
        elif kind < 0.8:
            schema = {"name": "x", "schema": draw.choice(_SCHEMAS), "strict": draw.random() < 0.5}
            changed["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif kind < 0.9:
            function = {"name": "f", "parameters": draw.choice(_SCHEMAS), "strict": draw.random() < 0.5}
            changed["tools"] = [{"type": "function", "function": function}]
            changed["tool_choice"] = draw.choice(
                ("required", "auto", "none", {"type": "function", "function": function})
            )
        else:
            changed["stream"] = True
            changed["stop"] = draw.choice(_VALUES)
    return changed


def _bytes(body: dict[str, Any], draw: random.Random) -> bytes:
    text = bytearray(json.dumps(body, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass"))
    if draw.random() < 0.1:
        for _ in range(draw.randint(1, 4)):
            text[draw.randrange(len(text))] = draw.randrange(256)
    return bytes(text)


def _json_type(draw: random.Random) -> dict[str, str]:
    return {"Content-Type": "application/json" if draw.random() < 0.97 else draw.choice(("text/plain", "", "a/b; c=d"))}


def _odd(draw: random.Random) -> dict[str, Any]:
    """Methods, paths and headers out of the ordinary."""
    path = draw.choice(
        ("/", "/health", "/metrics", "/v1/models", "/v1/models/%00", "/v1/models/..%2f..%2fx", "//", "/%ff")
    )
    headers = draw.choice(
        ({}, {"Host": "evil.example"}, {"Origin": "null"}, {"Content-Length": "-1"}, {"Authorization": "Basic %%%"})
    )
    method = draw.choice(("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"))
    return {"method": method, "url": path, "headers": headers}


async def attack(client: httpx.AsyncClient, count: int, seed: int, together: int = 4) -> Counter[int]:
    """Send them, some at a time.

    Returns:
        How often each status came.

    Raises:
        AssertionError: a status of 5xx, an answer that took too long, or memory that grew without bound.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: Counter[int] = Counter()
    waiting = requests(count, seed)

    async def worker() -> None:
        for request in waiting:
            began = time.monotonic()
            answer = await asyncio.wait_for(client.request(**request), SLOWEST)
            shown = str({**request, "content": request.get("content", b"")[:600]})
            assert answer.status_code < 500, f"{answer.status_code} {answer.text[:300]} for {shown}"
            assert time.monotonic() - began < SLOWEST, shown
            if answer.status_code >= 400 and request["method"] != "HEAD":
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, shown
                assert len(answer.content) < 5000, shown
            found[answer.status_code] += 1

    await asyncio.gather(*(worker() for _ in range(together)))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < GROWTH, f"{grown} KiB more memory"
    assert (await client.get("/health")).status_code == 200
    return found


def main() -> None:
    """The attack at any length, on a tiny model of its own."""
    from moonlet.serve.app import create_app
    from moonlet.serve.limits import Limits
    from moonlet.serve.models import serve_model
    from moonlet.text import ByteTokenizer
    from moonlet.text.chat import form_named
    from tests.conftest import TINY
    from tests.serve.conftest import in_process, tiny_engine

    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0

    async def run() -> None:
        from moonlet.config import ModelConfig
        from moonlet.model.init import build

        tokenizer, limits = ByteTokenizer(), Limits(max_tokens=64)
        model = build(ModelConfig(**{**TINY, "vocab_size": tokenizer.vocab_size}), seed=0).eval()
        served = serve_model(
            "tiny", model, tokenizer, lambda: tiny_engine(model, tokenizer, 4), slots=4, limits=limits,
            form=form_named("k2-0905"),
        )  # fmt: skip
        async with in_process(create_app([served], limits, page=())) as client:
            found = await attack(client, count, seed)
        print(f"{count} hostile requests, seed {seed}: " + ", ".join(f"{n} x {s}" for s, n in sorted(found.items())))

    asyncio.run(run())


if __name__ == "__main__":
    main()
