"""The microscope through the server: what it shows is what the model does, also while others are being answered."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest

from moonlet.serve.app import create_app
from moonlet.serve.limits import Limits
from moonlet.text import ByteTokenizer
from moonlet.text.chat import mark_ids
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


HELLO = [{"role": "user", "content": "Hello"}]


def test_a_conversation_is_seen_as_the_chat_reads_it(served: Make) -> None:
    async def main() -> None:
        async with in_process(create_app([served(form="k2-thinking")], page=())) as http:
            asked = {"messages": HELLO, "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 3}
            chat = (await http.post("/v1/chat/completions", json=asked)).json()
            seen = (await http.post("/moonlet/microscope", json={"messages": HELLO})).json()
            assert len(seen["ids"]) == chat["usage"]["prompt_tokens"]
            told = chat["choices"][0]["logprobs"]["content"]
            if told:  # else the likeliest is a mark
                assert told[0]["logprob"] == pytest.approx(seen["next"][0]["logprob"], abs=1e-4)
            answer = {"role": "assistant", "content": "Good day", "reasoning_content": "Hm."}
            whole = (await http.post("/moonlet/microscope", json={"messages": [*HELLO, answer]})).json()
            assert whole["ids"][: len(seen["ids"])] == seen["ids"]
            # The byte tokenizer's marks are reserved slots, whose names say nothing.
            marks = [mark_ids(ByteTokenizer())[name] for name in ("<think>", "</think>", "<|im_end|>")]
            said = (marks[0], *ByteTokenizer().encode("Hm."), marks[1], *ByteTokenizer().encode("Good day"), marks[2])
            assert tuple(whole["ids"][-len(said) :]) == said
            assert whole["ids"][-1] in whole["ends"]
            again = (await http.post("/moonlet/microscope", json={"prompt": whole["ids"]})).json()
            assert again["logprobs"] == whole["logprobs"]

    asyncio.run(main())


def test_a_model_without_chats_shows_none(served: Make) -> None:
    async def main() -> httpx.Response:
        async with in_process(create_app([served(form=None)], page=())) as http:
            return await http.post("/moonlet/microscope", json={"messages": HELLO})

    answer = asyncio.run(main())
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_chat_form")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"messages": HELLO}, "limit is 8"),
        ({}, "either prompt"),
        ({"prompt": "x", "messages": HELLO}, "either prompt"),
        ({"prompt": "x", "thinking": {"type": "enabled"}}, "belong to messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "alien"),
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


def test_a_look_that_fails_is_its_own_error_and_ends_nobody(served: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr("moonlet.serve.microscope.look", broken)

    async def main() -> None:
        async with in_process(create_app([served()], page=())) as http:
            failed = await http.post("/moonlet/microscope", json={"prompt": "abc"})
            assert failed.status_code == 500
            assert "no such thing" not in failed.text
            assert (await http.post("/v1/completions", json={"prompt": "y", "max_tokens": 3})).status_code == 200
            assert (await http.get("/health")).json() == {"status": "ok"}

    asyncio.run(main())
