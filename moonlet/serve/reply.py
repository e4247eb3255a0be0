"""Answering: from a plan to bytes on the wire, in one piece or as server-sent events.

    data: {chunk}      for each piece, as it comes; several share one write where the reader is behind
    data: {usage}      where stream_options.include_usage asks for it; its choices are empty
    data: [DONE]

Nothing is sent before the first token, so that what goes wrong until then has a status of its own; what goes wrong
later is an event {"error": ...}, after which neither [DONE] nor anything else comes. A client who goes ends its
requests in the engine at once, whether it was being streamed to or not.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from pydantic_core import to_json
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from moonlet.generate.request import Event
from moonlet.serve.answers import ChatAnswer, CompletionAnswer, Piece
from moonlet.serve.driver import Feed
from moonlet.serve.errors import ApiError
from moonlet.serve.limits import Limits
from moonlet.serve.metrics import Metrics
from moonlet.serve.plan import Plan, Served, too_long

T = TypeVar("T")
_LAST_WORDS = 1.0  # seconds for an error event to a reader who may have stopped reading


class Gone(Exception):
    """The client has closed its connection."""


class Reply:
    """One request's answers.

    Args:
        plan: what the engine is asked.
        chat: which of the two kinds of answers.
        usage: whether a stream ends with the count of tokens.
        started: when the request arrived, as `time.monotonic` tells.
        ended: called once it is over.
    """

    def __init__(
        self,
        plan: Plan,
        served: Served,
        limits: Limits,
        metrics: Metrics,
        *,
        chat: bool,
        usage: bool,
        started: float,
        ended: Callable[[], None],
    ) -> None:
        kind = ChatAnswer if chat else CompletionAnswer
        self._answers: list[ChatAnswer | CompletionAnswer] = [
            kind(plan, index, served) for index in range(len(plan.requests))
        ]
        self._plan, self._served, self._limits, self._metrics = plan, served, limits, metrics
        self._usage, self._started, self._ended = usage, started, ended
        self._first = True
        self._feed: Feed | None = None
        self._object = "chat.completion" if chat else "text_completion"
        self._chunk = "chat.completion.chunk" if chat else "text_completion"
        self._head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12),
            "created": int(time.time()),
            "model": served.name,
        }

    async def whole(self, request: HttpRequest) -> Response:
        """Wait for all of it.

        Raises:
            ApiError: refused, failed or too slow.
            Gone: nobody waits any more.
        """
        try:
            await self._in_time(_while_there(self._gather(), request.receive))
        finally:
            self._end()
        return Response(
            to_json(
                {
                    **self._head,
                    "object": self._object,
                    "choices": [answer.whole() for answer in self._answers],
                    "usage": self._count(),
                }
            ),
            media_type="application/json",
        )

    async def stream(self, request: HttpRequest) -> Response:
        """Wait for the beginning; the response sends it and all the rest.

        Raises:
            ApiError, Gone: as `whole`, before the first token.
        """
        try:
            pieces = await self._in_time(_while_there(self._begin(), request.receive))
        except BaseException:
            self._end()
            raise
        return _EventStream(self, pieces)

    async def send_all(self, start: Message, pieces: list[Piece], receive: Receive, send: Send) -> None:
        """Send a stream: its `start`, then events, beginning with the choices `pieces`; an error becomes the last."""
        assert self._feed is not None
        try:
            await send(start)
            await self._in_time(_while_there(self._pump(pieces, send), receive, self._feed.overrun.wait()))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except Gone:
            self._metrics.disconnects += 1
        except ApiError as error:
            last = b"data: " + to_json(error.body()) + b"\n\n"
            try:
                async with asyncio.timeout(_LAST_WORDS):
                    await send({"type": "http.response.body", "body": last, "more_body": False})
            except TimeoutError:
                pass  # it does not read; the connection is closed
        finally:
            self._end()

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        left = self._started + self._limits.request_seconds - time.monotonic()
        try:
            async with asyncio.timeout(left):
                return await work
        except TimeoutError:
            raise ApiError(408, too_long("the request", self._limits), code="request_seconds_limit") from None

    async def _begin(self) -> list[Piece]:
        self._feed = await self._served.driver.submit(self._plan.requests)
        return await self._next()

    async def _gather(self) -> None:
        await self._begin()
        while not self._done:
            await self._next()

    async def _pump(self, pieces: list[Piece], send: Send) -> None:
        while True:
            if pieces:
                await send({"type": "http.response.body", "body": self._events(pieces), "more_body": True})
            if self._done:
                break
            pieces = await self._next()
        end = b"data: [DONE]\n\n"
        if self._usage:
            end = self._event({"choices": [], "usage": self._count()}) + end
        await send({"type": "http.response.body", "body": end, "more_body": True})

    async def _next(self) -> list[Piece]:
        """Take in what the engine has made since; the choices for a stream."""
        assert self._feed is not None
        pieces: list[Piece] = []
        for index, event in await self._feed.take():
            pieces += self._read(index, event)
        return pieces

    def _read(self, index: int, event: Event) -> list[Piece]:
        if self._first:
            self._first = False
            self._metrics.first_token.observe(time.monotonic() - self._started)
        answer = self._answers[index]
        if answer.finish is not None:
            return []  # it ended by a stop text while more was on its way
        pieces = answer.read(event)
        if event.finish is None and self._answers[index].finish is not None and self._feed is not None:
            self._feed.drop(index)
        return pieces

    @property
    def _done(self) -> bool:
        return all(answer.finish is not None for answer in self._answers)

    def _events(self, pieces: Sequence[Piece]) -> bytes:
        extra = {"usage": None} if self._usage else {}
        return b"".join([self._event({"choices": [piece], **extra}) for piece in pieces])

    def _event(self, chunk: Piece) -> bytes:
        return b"data: " + to_json({**self._head, "object": self._chunk, **chunk}) + b"\n\n"

    def _count(self) -> Piece:
        prompt, drawn = sum(map(len, self._plan.prompts)), sum(answer.drawn for answer in self._answers)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": drawn,
            "total_tokens": prompt + drawn,
            "prompt_tokens_details": {"cached_tokens": self._reused()},
            "completion_tokens_details": {"reasoning_tokens": sum(answer.reasoned for answer in self._answers)},
        }

    def _reused(self) -> int:
        """Tokens of the prompts that were not read: of several answers to one prompt the first one's."""
        each = len(self._answers) // len(self._plan.prompts)
        return sum(answer.reused for answer in self._answers[::each])

    def _end(self) -> None:
        self._ended()
        metrics = self._metrics
        metrics.duration.observe(time.monotonic() - self._started)
        if self._feed is not None:
            self._feed.close()
            metrics.prompt_tokens += sum(map(len, self._plan.prompts))
            metrics.reused_tokens += self._reused()
            metrics.generated_tokens += sum(answer.drawn for answer in self._answers)


class _EventStream(Response):
    media_type = "text/event-stream"

    def __init__(self, reply: Reply, pieces: list[Piece]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._reply, self._pieces = reply, pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await self._reply.send_all(start, self._pieces, receive, send)


async def _while_there(work: Coroutine[Any, Any, T], receive: Receive, *ends: Coroutine[Any, Any, object]) -> T:
    """Work for as long as the client is there.

    Raises:
        Gone: the client has closed its connection, or something of `ends` has happened.
    """
    task = asyncio.ensure_future(work)
    others = [asyncio.ensure_future(one) for one in (_gone(receive), *ends)]
    try:
        await asyncio.wait([task, *others], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for one in (task, *others):
            one.cancel()
        await asyncio.gather(task, *others, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
