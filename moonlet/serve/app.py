"""The application: which path does what.

    POST /v1/completions         texts continued            POST /v1/chat/completions   conversations answered
    GET  /v1/models, .../NAME    what is served             GET  /metrics               what is counted
    GET  /health                 whether it works           GET  /, ...                 the page, where there is one
    POST /moonlet/microscope     a text from inside         GET  /openapi.json          all of this for programs

A GET never generates. Every path passes `security.Guard` first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moonlet import __version__
from moonlet.serve.driver import SHUTTING_DOWN
from moonlet.serve.errors import ApiError, bad
from moonlet.serve.limits import Limits, option
from moonlet.serve.metrics import CONTENT_TYPE, Metrics
from moonlet.serve.openapi import ANSWERS, describe
from moonlet.serve.plan import Plan, Served, plan_chat, plan_completion
from moonlet.serve.protocol import ChatRequest, CompletionRequest, ViewRequest, read
from moonlet.serve.reply import Gone, Reply
from moonlet.serve.security import CSP_PAGE, Access, Guard
from moonlet.serve.static import PageFile, page_files

log = logging.getLogger("moonlet.serve")


class Service:
    """What the routes share.

    Args:
        models: at least one; the first is meant where a request names none.
    """

    def __init__(self, models: Sequence[Served], limits: Limits) -> None:
        assert models, "a server serves at least one model"
        self.models = {model.name: model for model in models}
        self.limits, self.metrics = limits, Metrics()
        self._live, self._closed = 0, False
        # Encoding and compiling schemas: off the event loop, and never more than two at once.
        self._pool = ThreadPoolExecutor(2, "moonlet-plan")

    def model(self, name: str | None) -> Served:
        """The model of that name.

        Raises:
            ApiError: 404, there is none.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise ApiError(
                404,
                f"the model {name[:80]!r} is not served here; there is {', '.join(self.models)}",
                param="model",
                code="model_not_found",
            )
        return self.models[name]

    async def completion(self, request: Request) -> Response:
        """POST /v1/completions"""
        started = time.monotonic()
        asked = read(await request.body(), CompletionRequest)
        return await self._answer(request, asked, plan_completion, started, chat=False)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions"""
        started = time.monotonic()
        asked = read(await request.body(), ChatRequest)
        return await self._answer(request, asked, plan_chat, started, chat=True)

    async def _answer(
        self, request: Request, asked: Any, plan: Callable[[Any, Served, Limits], Plan], started: float, *, chat: bool
    ) -> Response:
        served = self.model(asked.model)
        leave = self._enter()
        try:
            planned = await asyncio.get_running_loop().run_in_executor(self._pool, plan, asked, served, self.limits)
        except BaseException:
            leave()
            raise
        usage = bool(asked.stream and asked.stream_options and asked.stream_options.include_usage)
        reply = Reply(
            planned, served, self.limits, self.metrics, chat=chat, usage=usage, started=started, ended=leave
        )  # fmt: skip
        try:
            return await (reply.stream(request) if asked.stream else reply.whole(request))
        except Gone:
            self.metrics.disconnects += 1
            return Response(status_code=499)  # nobody reads it

    async def view(self, request: Request) -> Response:
        """POST /moonlet/microscope"""
        from moonlet.serve.microscope import view

        asked = read(await request.body(), ViewRequest)
        leave = self._enter()
        try:
            return _json(await view(asked, self.model(asked.model), self.limits))
        finally:
            leave()

    def _enter(self) -> Callable[[], None]:
        """Take one of the places for requests under way; what is returned gives it back."""
        if self._closed:
            raise ApiError(503, SHUTTING_DOWN, code="shutting_down")
        if self._live >= self.limits.live:
            raise ApiError(
                429,
                f"{self._live} requests are under way, and this server's limit is {self.limits.live}; try again in a "
                f"moment, or start the server with {option('live')}",
                code="live_limit",
                headers={"Retry-After": "1"},
            )
        self._live += 1

        def leave() -> None:
            self._live -= 1

        return leave

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of /health."""
        models = self.models.values()
        failed = [model.name for model in models if model.driver.failure is not None]
        if failed:
            return 503, {"status": "failed", "error": f"the engine of {', '.join(failed)} has failed; see the log"}
        if any(model.driver.stopping for model in models):
            return 503, {"status": "stopping"}
        return 200, {"status": "ok"}

    def start(self) -> None:
        """Start the engines' threads."""
        for model in self.models.values():
            model.driver.start()

    async def drain(self) -> None:
        """Take in nothing new, and give what is live its time; what is not over then gets an error."""
        drivers = [model.driver for model in self.models.values()]
        for driver in drivers:
            driver.drain()
        end = time.monotonic() + self.limits.drain_seconds
        while any(driver.open for driver in drivers) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        self.close()

    def close(self) -> None:
        """End the engines' threads."""
        self._closed = True
        for model in self.models.values():
            model.driver.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def create_app(
    models: Sequence[Served],
    limits: Limits | None = None,
    access: Access | None = None,
    page: Sequence[PageFile] | None = None,
) -> FastAPI:
    """The application for some models.

    Args:
        models: at least one; the first is meant where a request names none.
        page: its files; None takes those of the package.
    """
    limits, access = limits or Limits(), access or Access()
    service = Service(models, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.get_running_loop().run_in_executor(None, service.close)

    app = FastAPI(
        title="moonlet", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan,
        description="Kimi models behind the OpenAI interface.",
    )  # fmt: skip
    app.state.service = service
    _add_routes(app, service)
    files = page_files() if page is None else page
    for file in files:
        app.add_api_route(file.path, _file_route(file), methods=["GET"], include_in_schema=False)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(Guard, access=access, limits=limits)
    app.add_middleware(_Counting, service=service, routes=_paths(app))
    app.openapi = lambda: describe(app, limits, access.key is not None)  # type: ignore[method-assign]
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    async def completions(request: Request) -> Response:
        """Continue texts."""
        return await service.completion(request)

    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await service.chat(request)

    async def microscope(request: Request) -> Response:
        """Look at a text from inside."""
        return await service.view(request)

    async def models() -> Response:
        """What is served."""
        return _json({"object": "list", "data": [_card(model) for model in service.models.values()]})

    async def model(model: str) -> Response:
        """One of the models."""
        return _json(_card(service.model(model)))

    async def health() -> Response:
        """Whether the server works; needs no key."""
        status, body = service.health()
        return _json(body, status)

    async def metrics() -> Response:
        """Counts for Prometheus."""
        return Response(service.metrics.text(list(service.models.values())), media_type=CONTENT_TYPE)

    def add(path: str, method: str, route: Callable[..., Awaitable[Response]], answer: str) -> None:
        app.add_api_route(path, route, methods=[method], responses=ANSWERS[answer], response_class=Response)

    add("/v1/completions", "POST", completions, "completion")
    add("/v1/chat/completions", "POST", chat_completions, "chat")
    add("/moonlet/microscope", "POST", microscope, "view")
    add("/v1/models", "GET", models, "models")
    add("/v1/models/{model}", "GET", model, "model")
    add("/health", "GET", health, "health")
    add("/metrics", "GET", metrics, "metrics")


def _file_route(file: PageFile) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        headers = {"Content-Security-Policy": CSP_PAGE, "Cache-Control": "no-cache", "ETag": file.etag}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.media_type, headers=headers)

    return page


def _card(model: Served) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "moonlet",
        "context": model.context,
        "chat": None if model.form is None else model.form.name,
        "facts": model.facts,
    }


def _paths(app: FastAPI) -> frozenset[str]:
    return frozenset(path for route in app.routes if "{" not in (path := str(getattr(route, "path", ""))))


class _Counting:
    """Counts answers by route and status; outside of everything else, so that refusals count too."""

    def __init__(self, app: ASGIApp, service: Service, routes: frozenset[str]) -> None:
        self._app, self._service, self._routes = app, service, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"]
                route = path if path in self._routes else "other"
                self._service.metrics.requests[route, message["status"]] += 1
            await send(message)

        await self._app(scope, receive, counting if scope["type"] == "http" else send)


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _json(error.body(), error.status, error.headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = {404: "there is nothing here", 405: f"{request.method} is not possible here"}
    wrong = bad(known.get(error.status_code, str(error.detail)), code="not_found" if error.status_code == 404 else None)
    return _json(wrong.body(), error.status_code, error.headers)


async def _on_bug(request: Request, error: Exception) -> Response:
    # The traceback is logged by whoever runs the application; a client learns nothing of it.
    return _json(ApiError(500, "the server made a mistake; its log says which", code="bug").body(), 500)


def _json(body: dict[str, Any], status: int = 200, headers: Any = None) -> Response:
    return Response(to_json(body, inf_nan_mode="null"), status, headers, "application/json")
