"""The microscope through the server: what it shows is what the model does, also while others are being answered."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest

from moonlet.serve.app import create_app
from moonlet.serve.limits import Limits
from tests.serve.conftest import Make, in_process


def test_a_view_agrees_with_what_the_server_says_next(served: Make) -> None:
    async def main() -> None:
        async with in_process(create_app([served()], page=())) as http:
            other = asyncio.create_task(http.post("/v1/completions", json={"prompt": "y", "max_tokens": 60, "seed": 1}))
            shown = (await http.post("/moonlet/microscope", json={"prompt": "Once", "layer": 1, "head": 2})).json()
            assert shown["ids"][0] == 0
            assert shown["tokens"][1:] == ["O", "n", "c", "e"]
            assert len(shown["likely"]) == len(shown["logprobs"]) == 5
            assert shown["logprobs"][0] is None
            assert list(shown["experts"]) == ["1"]
            assert [len(row) for row in shown["attention"]] == [1, 2, 3, 4, 5]
            assert all(abs(sum(row) - 1) < 1e-3 for row in shown["attention"])
            asked = {"prompt": shown["ids"], "max_tokens": 1, "temperature": 0, "logprobs": 1}
            drawn = (await http.post("/v1/completions", json=asked)).json()["choices"][0]["logprobs"]
            assert drawn["token_logprobs"][0] == pytest.approx(shown["next"][0]["logprob"], abs=1e-4)
            alone = await http.post("/v1/completions", json={"prompt": "y", "max_tokens": 60, "seed": 1})
            assert (await other).json()["choices"] == alone.json()["choices"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"prompt": "x" * 8}, "limit is 8"),
        ({"prompt": ["x", "y"]}, "one text"),
        ({"prompt": [999]}, "vocabulary"),
        ({"prompt": "x", "layer": 9, "head": 0}, "layer 9"),
        ({"prompt": "x", "layer": 1, "head": 99}, "head 99"),
        ({"prompt": "x", "layer": 1}, "both"),
        ({"prompt": "x", "likely": 10**9}, "k is"),
        ({"prompt": "x", "laier": 1}, "unknown parameter laier"),
    ],
    ids=str,
)
def test_what_cannot_be_looked_at_is_refused(served: Make, asked: dict[str, Any], says: str) -> None:
    async def main() -> httpx.Response:
        limits = Limits(view_tokens=8)
        async with in_process(create_app([served(limits=limits)], limits, page=())) as http:
            return await http.post("/moonlet/microscope", json=asked)

    answer = asyncio.run(main())
    assert (answer.status_code, says in answer.text) == (400, True), answer.text


def test_a_long_text_is_split_into_tokens_beside_the_event_loop(served: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one, threads = served(), []

    def encode(text: str) -> list[int]:
        threads.append(threading.current_thread())
        return [20] * len(text)

    monkeypatch.setattr(one.tokenizer, "encode", encode)

    async def main() -> None:
        async with in_process(create_app([one], page=())) as http:
            assert (await http.post("/moonlet/microscope", json={"prompt": "abc"})).status_code == 200

    asyncio.run(main())
    assert threads
    assert threading.main_thread() not in threads
