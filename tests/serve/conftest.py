"""A tiny random model behind the whole application, in process or on a socket of 127.0.0.1."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from moonlet.generate.batch import Engine as BatchEngine
from moonlet.serve.app import create_app
from moonlet.serve.driver import Engine
from moonlet.serve.limits import Limits
from moonlet.serve.models import serve_model
from moonlet.serve.plan import Served
from moonlet.text import ByteTokenizer
from moonlet.text.chat import form_named

URL = "http://127.0.0.1"
LOOP = "event loop"
"""Name of the thread whose event loop answers."""


@pytest.fixture(scope="session")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture(scope="session")
def model(tiny_model: Callable[..., Any], tokenizer: ByteTokenizer) -> Any:
    return tiny_model(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, max_position_embeddings=2048
    )


Make = Callable[..., Served]


def tiny_engine(model: Any, tokenizer: ByteTokenizer, slots: int) -> Engine:
    """The engine that the tests serve."""
    return BatchEngine(model, tokenizer, slots=slots)


@pytest.fixture(scope="session")
def served(model: Any, tokenizer: ByteTokenizer) -> Make:
    """served(...): the tiny model with an engine of its own; `engine` builds another one."""

    def make(
        name: str = "tiny",
        *,
        slots: int = 4,
        limits: Limits | None = None,
        form: str | None = "k2-0905",
        engine: Callable[[], Engine] | None = None,
    ) -> Served:
        build = engine or (lambda: tiny_engine(model, tokenizer, slots))
        chosen = None if form is None else form_named(form)
        return serve_model(name, model, tokenizer, build, slots=slots, limits=limits or Limits(), form=chosen)

    return make


@contextlib.asynccontextmanager
async def in_process(app: Any, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application, without a socket."""
    app.state.service.start()
    try:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=URL, timeout=30, **settings) as client:
            yield client
    finally:
        app.state.service.close()


@contextlib.contextmanager
def on_socket(app: Any, send_buffer: int | None = None) -> Iterator[str]:
    """The address of an application that listens on 127.0.0.1, in a thread of its own.

    `send_buffer`: bytes that the machine keeps for a client who does not read; None leaves it to the machine.
    """
    listening = socket.socket()
    if send_buffer is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_keep_alive=30, timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), name=LOOP, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < end, "the server did not start"
        time.sleep(0.01)
    try:
        yield f"{URL}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def address(served: Make) -> Iterator[str]:
    """Where the tiny model is served."""
    with on_socket(create_app([served()], page=())) as address:
        yield address
