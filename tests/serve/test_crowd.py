"""Two hundred clients, of whom 60 leave and 20 dawdle: slots come free, nobody else notices, /health answers."""

from __future__ import annotations

import gc
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from moonlet.generate.batch import Engine
from moonlet.generate.request import Event, Request
from moonlet.serve.app import create_app
from moonlet.serve.limits import Limits
from moonlet.serve.run import spare_the_loop
from tests.serve import crowd
from tests.serve.conftest import LOOP, Make, on_socket, tiny_engine
from tests.serve.fair import Waiting

ROUNDS = 3


class Noting:
    """The real engine, noting when a client's text was cancelled and its slot was free."""

    def __init__(self, engine: Any) -> None:
        self._engine: Engine = engine
        self._tokens: dict[int, int] = {}
        self.freed: dict[int, float] = {}
        """When, by the number of tokens that was asked for."""

    def submit(self, request: Request) -> int:
        ticket = self._engine.submit(request)
        self._tokens[ticket] = request.params.max_new_tokens
        return ticket

    def cancel(self, ticket: int) -> None:
        self._engine.cancel(ticket)
        self.freed[self._tokens[ticket]] = time.monotonic()

    def step(self) -> list[Event]:
        return self._engine.step()

    @property
    def idle(self) -> bool:
        return self._engine.idle

    def stats(self) -> Any:
        return self._engine.stats()

    def close(self) -> None:
        self._engine.close()


@dataclass
class Round:
    """What one crowd met: seconds of /health, twice over, and from each leaving to the free slot."""

    loop: list[float] = field(default_factory=list)
    """What the event loop computed between a question and its answer."""
    answer: list[float] = field(default_factory=list)
    """From the question to the answer, less the waiting for a processor."""
    freed: list[float] = field(default_factory=list)
    """From a client's leaving to its slot being free, less the waiting for a processor."""


@pytest.fixture
def spared() -> Iterator[None]:
    """The garbage collector as `moonlet serve` has it."""
    spare_the_loop()
    yield
    gc.unfreeze()


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="no clock of one thread's computing")
def test_two_hundred_clients_of_whom_many_leave_or_dawdle(
    served: Make, spared: None, model: Any, tokenizer: Any
) -> None:
    """Of 200 clients at once 60 close their connection in mid-stream and 20 read slowly. Asserted in every round:

    - each other client's text, those who dawdle included, is the one it gets alone
    - between any question to /health and its answer the event loop has computed for less than 200 ms
    - no request is left open, and no slot is taken

    and in one round of three, since a machine may stop for reasons nobody counts, where waiting for a processor is
    counted (`fair`; elsewhere only these times' being below ten seconds is asserted):

    - each question to /health is answered within 200 ms
    - each slot is free within 1 s of its client's leaving

    both on the clock, less the time in which the server's threads were ready to run and the machine ran something else.
    """
    limits = Limits(queue=300, live=300)
    engine = Noting(tiny_engine(model, tokenizer, 8))
    one = served(slots=8, limits=limits, engine=lambda: engine)
    app = create_app([one], limits, page=())
    waiting = Waiting()
    with on_socket(app, send_buffer=8192) as address:
        port = int(address.rpartition(":")[2])
        alone = _alone(port)
        for seed in range(ROUNDS):
            engine.freed.clear()
            found = _one_round(port, seed, one, engine, waiting, alone)
            assert max(found.loop) < 0.2
            assert max(found.answer + found.freed) < (10.0 if not waiting.counted else float("inf"))
            if max(found.answer) < 0.2 and max(found.freed) < 1.0:
                break
        else:
            assert not waiting.counted, f"/health took {max(found.answer):.3f} s, a slot {max(found.freed):.3f} s"
    assert app.state.service._live == 0


def _one_round(port: int, seed: int, one: Any, engine: Noting, waiting: Waiting, alone: dict[str, list[str]]) -> Round:
    found, parts = Round(), crowd.parts(seed)
    command = [sys.executable, "-m", "tests.serve.crowd", str(port), str(seed)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    said: list[str] = []
    reading = threading.Thread(target=lambda: said.append(process.communicate()[0]))
    reading.start()
    loop = next(thread for thread in threading.enumerate() if thread.name == LOOP)
    clock = time.pthread_getcpuclockid(loop.ident or 0)
    asking = http.client.HTTPConnection("127.0.0.1", port)
    while reading.is_alive():
        began, computed = waiting.sample(), time.clock_gettime(clock)
        asking.request("GET", "/health")
        assert json.loads(asking.getresponse().read()) == {"status": "ok"}
        found.loop.append(time.clock_gettime(clock) - computed)
        found.answer.append(waiting.ours(began, waiting.sample()))
        time.sleep(0.01)
    asking.close()
    told = json.loads(said[0])
    for client, text in told["texts"].items():
        assert text == alone[parts[int(client)]][int(client) % crowd.PROMPTS]
    assert len(told["left"]) == 60
    end = time.monotonic() + 10
    while one.driver.open:
        assert time.monotonic() < end, f"{one.driver.open} requests are still open"
        time.sleep(0.001)
    waiting.sample()
    # Whoever left is known by how much it had asked for; a slot may come free before the client looked at its clock.
    for client, when in told["left"].items():
        freed = engine.freed.get(1500 + int(client))
        assert freed is not None, f"the text of client {client}, who left, was written to its end"
        found.freed.append(waiting.ours(when, max(freed, when)))
    stats = engine.stats()
    assert (stats.live, stats.free_slots) == (0, 8)
    return found


def _alone(port: int) -> dict[str, list[str]]:
    """Each text that a client may read to its end, asked for when nobody else is there."""
    texts: dict[str, list[str]] = {}
    for part in (crowd.STAYS, crowd.DAWDLES):
        texts[part] = []
        for client in range(crowd.PROMPTS):
            asking = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            body = json.dumps(crowd.asked(client, part))
            asking.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            texts[part].append(crowd.text_of(asking.getresponse().read().decode()))
            asking.close()
    return texts
