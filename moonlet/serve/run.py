"""Running the application on a socket until it is told to stop, and stopping so that nobody is cut off.

On SIGTERM or Ctrl-C: no new connection, no new request, what is live goes on for at most `drain_seconds`; what is not
over then ends with an error event. A second Ctrl-C ends at once.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG

# Longer than clients keep an idle connection (5 s is usual): else a request may meet its connection being closed.
_KEEP_ALIVE = 30
_GRACE = 3.0  # seconds for the last bytes, beyond what live requests have


class _Server(uvicorn.Server):
    """Drains the engines while the connections close."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._ready = app.state.service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        draining = asyncio.create_task(self._service.drain())
        await super().shutdown(sockets)
        if self.force_exit:
            draining.cancel()
            await self.lifespan.shutdown()  # ends the engines; uvicorn leaves it out where it is forced
        else:
            await draining


def run(app: FastAPI, listening: socket.socket, ready: Callable[[str], None]) -> None:
    """Serve until a signal says to stop.

    Args:
        listening: of `listen`.
        ready: called with the address once requests are answered.
    """
    config = uvicorn.Config(
        app,
        log_config=_logging(),
        access_log=True,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=int(app.state.service.limits.drain_seconds + _GRACE),
    )
    host, port = listening.getsockname()[:2]
    server = _Server(config, app, lambda: ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"))
    # uvicorn raises the signal again when it has stopped; being asked to stop is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _nothing)
    spare_the_loop()
    asyncio.run(server.serve([listening]))


def spare_the_loop() -> None:
    """Take what is there now, libraries and models, out of the garbage collector's sight; to be called once, when all
    is loaded. Its walks through all of that hold the interpreter's lock, and so every answer, some 150 ms each."""
    gc.collect()
    gc.freeze()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket for `run`; 0 takes any port that is free.

    Raises:
        ValueError: the address is in use, or not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ValueError(f"the host {host!r} is unknown: {error.strerror}") from None
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen()  # until then another may bind to it; who calls already, waits until the models are loaded
    except OSError as error:
        listening.close()
        raise ValueError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host") from None
    return listening


def _logging() -> dict[str, Any]:
    """uvicorn's lines, and ours with them, on stderr."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["handlers"]["access"]["stream"] = "ext://sys.stderr"
    config["loggers"]["moonlet"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    config["loggers"]["uvicorn"]["level"] = "WARNING"
    config["loggers"]["uvicorn.access"]["level"] = logging.getLevelName(logging.INFO)
    return config


def _nothing(*_: object) -> None:
    return
