"""Many clients at once, those who go and those who dawdle: slots come free, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import httpx
import pytest

from moonlet.generate.request import Event, Request
from moonlet.serve.app import create_app
from moonlet.serve.errors import ApiError
from moonlet.serve.limits import Limits
from tests.serve.conftest import Make, in_process, on_socket


class Scripted:
    """An engine that says the same word for ever, as fast or slow as told, and fails where told."""

    def __init__(self, slots: int = 4, pause: float = 0.0, fail_at: int | None = None) -> None:
        self._slots, self._pause, self._fail_at = slots, pause, fail_at
        self._texts: dict[int, list[Any]] = {}
        self._steps = self._tickets = 0
        self.closed = False

    def submit(self, request: Request) -> int:
        if len(request.prompt) > 1000:
            raise ValueError("the prompt will never fit")
        self._tickets += 1
        self._texts[self._tickets] = [request, 0]
        return self._tickets

    def cancel(self, ticket: int) -> None:
        self._texts.pop(ticket, None)

    @property
    def idle(self) -> bool:
        return not self._texts

    def step(self) -> list[Event]:
        time.sleep(self._pause)
        self._steps += 1
        if self._steps == self._fail_at:
            raise RuntimeError("out of cheese")
        events = []
        for ticket, text in list(self._texts.items())[: self._slots]:
            text[1] += 1
            done = text[1] >= text[0].params.max_new_tokens
            events.append(Event(ticket, 16 + ord("w"), "w", finish="length" if done else None))
            if done:
                del self._texts[ticket]
        return events

    def stats(self) -> None:
        return None

    def close(self) -> None:
        self.closed = True


def body(**settings: Any) -> dict[str, Any]:
    return {"prompt": "x", "max_tokens": 5, **settings}


def texts(answer: str) -> str:
    """The text of a stream."""
    events = [line[6:] for line in answer.splitlines() if line.startswith("data: ") and line != "data: [DONE]"]
    return "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])


async def until(true: Any, seconds: float = 1.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not so within {seconds} s"
        await asyncio.sleep(0.005)


def test_a_client_who_goes_frees_its_slot_streamed_or_not(served: Make) -> None:
    one = served(engine=lambda: Scripted(pause=0.002))
    app = create_app([one], page=())

    async def main(address: str) -> None:
        async with httpx.AsyncClient(base_url=address) as http:
            for stream in (True, False):
                asked = http.post("/v1/completions", json=body(max_tokens=1500, stream=stream))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asked, 0.3)
                await until(lambda: one.driver.open == 0)

    with on_socket(app) as address:
        asyncio.run(main(address))
    assert app.state.service.metrics.disconnects == 2


def test_a_reader_who_dawdles_holds_nobody_and_is_ended(served: Make) -> None:
    limits = Limits(unread=500, max_tokens=10**6)
    one = served(engine=lambda: Scripted(), limits=limits)
    object.__setattr__(one, "context", 10**6)
    app = create_app([one], limits, page=())

    async def main(address: str) -> None:
        port = int(address.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 12)
        asked = json.dumps(body(max_tokens=10**6, stream=True)).encode()
        head = "POST /v1/completions HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"
        size = f"Content-Length: {len(asked)}"
        writer.write("\r\n".join([*head, size, "", ""]).encode() + asked)
        await reader.readexactly(20)
        async with httpx.AsyncClient(base_url=address) as http:
            answers = await asyncio.gather(*(http.post("/v1/completions", json=body(), timeout=5) for _ in range(3)))
        assert all(answer.json()["choices"][0]["text"] == "wwwww" for answer in answers)
        await until(lambda: one.driver.open == 0, 20)
        writer.close()

    with on_socket(app) as address:
        asyncio.run(main(address))


def test_a_failing_engine_ends_everyone_with_a_reason(served: Make) -> None:
    one = served(engine=lambda: Scripted(pause=0.01, fail_at=5))
    app = create_app([one], page=())

    async def main() -> None:
        async with in_process(app) as http:
            streamed, whole = await asyncio.gather(
                http.post("/v1/completions", json=body(max_tokens=50, stream=True)),
                http.post("/v1/completions", json=body(max_tokens=50)),
            )
            last = json.loads(streamed.text.strip().splitlines()[-1][6:])
            assert "out of cheese" in last["error"]["message"]
            assert "[DONE]" not in streamed.text
            assert whole.status_code == 503
            health = await http.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "failed")
            assert (await http.post("/v1/completions", json=body())).status_code == 503
            assert 'moonlet_up{model="tiny"} 0' in (await http.get("/metrics")).text

    asyncio.run(main())


def test_an_engine_that_cannot_be_built_says_so(served: Make) -> None:
    def build() -> Any:
        raise ValueError("no memory for the cache")

    async def main() -> None:
        async with in_process(create_app([served(engine=build)], page=())) as http:
            answer = await http.post("/v1/completions", json=body())
            assert (answer.status_code, "no memory" in answer.text) == (503, True)

    asyncio.run(main())


def test_what_is_live_is_finished_before_the_server_stops(served: Make) -> None:
    async def stop(seconds: float, tokens: int) -> tuple[httpx.Response, httpx.Response]:
        limits = Limits(drain_seconds=seconds)
        app = create_app([served(engine=lambda: Scripted(pause=0.01), limits=limits)], limits, page=())
        async with in_process(app) as http:
            live = asyncio.create_task(http.post("/v1/completions", json=body(max_tokens=tokens, stream=True)))
            await until(lambda: next(iter(app.state.service.models.values())).driver.open == 1)
            draining = asyncio.create_task(app.state.service.drain())
            await asyncio.sleep(0.02)
            late = await http.post("/v1/completions", json=body())
            assert (await http.get("/health")).json() == {"status": "stopping"}
            await draining
            return await live, late

    finished, late = asyncio.run(stop(10, 20))
    assert texts(finished.text) == "w" * 20
    assert (late.status_code, late.json()["error"]["code"]) == (503, "shutting_down")
    cut, _ = asyncio.run(stop(0.1, 1500))
    assert "the server is shutting down" in cut.text
    assert "[DONE]" not in cut.text


def test_a_request_that_comes_after_the_end_is_told_so(served: Make) -> None:
    async def main() -> httpx.Response:
        app = create_app([served()], page=())
        async with in_process(app) as http:
            app.state.service.close()
            return await http.post("/v1/completions", json=body())

    answer = asyncio.run(main())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")


def test_the_queue_and_the_live_requests_are_bounded(served: Make) -> None:
    def statuses(limits: Limits) -> list[int]:
        one = served(slots=2, engine=lambda: Scripted(2, pause=0.01), limits=limits)
        app = create_app([one], limits, page=())

        async def main() -> list[int]:
            async with in_process(app) as http:
                posts = [http.post("/v1/completions", json=body(max_tokens=10)) for _ in range(5)]
                answers = await asyncio.gather(*posts)
                for answer in answers:
                    if answer.status_code == 429:
                        assert answer.headers["Retry-After"] == "1"
                        assert "limit" in answer.text or "hold 4" in answer.text
                after = await http.post("/v1/completions", json=body())
                return [*sorted(answer.status_code for answer in answers), after.status_code]

        return asyncio.run(main())

    assert statuses(Limits(queue=2)) == [200] * 4 + [429, 200]
    assert statuses(Limits(queue=3)) == [200] * 6
    assert statuses(Limits(live=3)) == [200] * 3 + [429] * 2 + [200]


def test_a_request_has_its_time_and_no_more(served: Make) -> None:
    limits = Limits(request_seconds=1)
    object.__setattr__(limits, "request_seconds", 0.1)
    one = served(engine=lambda: Scripted(pause=0.02), limits=limits)

    async def main() -> None:
        async with in_process(create_app([one], limits, page=())) as http:
            whole = await http.post("/v1/completions", json=body(max_tokens=900))
            assert (whole.status_code, "0.1 s" in whole.text) == (408, True)
            streamed = await http.post("/v1/completions", json=body(max_tokens=900, stream=True))
            assert json.loads(streamed.text.strip().splitlines()[-1][6:])["error"]["type"] == "timeout_error"
            await until(lambda: one.driver.open == 0)

    asyncio.run(main())


def test_what_can_never_fit_is_refused_and_the_rest_of_it_too(served: Make) -> None:
    one = served(engine=lambda: Scripted())

    async def main() -> None:
        async with in_process(create_app([one], page=())) as http:
            answer = await http.post("/v1/completions", json=body(prompt=["x", "y" * 1500]))
            assert (answer.status_code, "never fit" in answer.text) == (400, True)
            await until(lambda: one.driver.open == 0)

    asyncio.run(main())


LIMITED = {
    "prompt_tokens": lambda n: {"prompt": [16 + ord("a")] * n},
    "max_tokens": lambda n: {"max_tokens": n},
    "n": lambda n: {"n": n},
    "prompts": lambda n: {"prompt": ["x"] * n},
    "stop": lambda n: {"stop": ["!"] * n},
    "stop_bytes": lambda n: {"stop": "é" * (n // 2) + "!" * (n % 2)},
    "logit_bias": lambda n: {"logit_bias": {str(i): 0 for i in range(n)}},
    "logprobs": lambda n: {"logprobs": n},
    "tools": lambda n: {"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(n)],
                        "tool_choice": "none"},
    "messages": lambda n: {"messages": [{"role": "user", "content": "x"}] * n},
}  # fmt: skip


@pytest.mark.parametrize("limit", LIMITED)
def test_a_limit_passes_itself_and_refuses_one_more(served: Make, limit: str) -> None:
    chat = limit in ("tools", "messages")
    most = 6
    limits = Limits(**{"max_tokens": 6, limit: most})  # type: ignore[arg-type]
    # A script has no log-probabilities to tell, and needs none to be asked.
    one = served(engine=lambda: Scripted(), limits=limits)

    async def main() -> None:
        async with in_process(create_app([one], limits, page=())) as http:
            path = "/v1/chat/completions" if chat else "/v1/completions"
            start = {"messages": [{"role": "user", "content": "x"}]} if chat else body(max_tokens=1)
            for given, status in ((most, 200), (most + 1, 400)):
                answer = await http.post(path, json={**start, "max_tokens": 1, **LIMITED[limit](given)})
                assert answer.status_code == status, answer.text
            error = answer.json()["error"]
            assert str(most) in error["message"]
            assert str(most + 1) in error["message"]
            assert error["code"] == f"{limit}_limit"

    asyncio.run(main())


def test_the_models_own_length_is_a_limit(served: Make) -> None:
    async def main() -> None:
        async with in_process(create_app([served()], page=())) as http:
            fits = body(prompt=[20] * 2040, max_tokens=8)
            assert (await http.post("/v1/completions", json=fits)).status_code == 200
            answer = await http.post("/v1/completions", json={**fits, "max_tokens": 9})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")

    asyncio.run(main())


@pytest.mark.parametrize("settings", [{"n": 0}, {"n": 1.5}, {"body_bytes": float("inf")}, {"request_seconds": 0}])
def test_limits_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Limits(**settings)


def test_a_huge_number_is_named_shortly() -> None:
    with pytest.raises(ApiError, match="a number of 401 digits"):
        Limits().check("n", 10**400, "n")
