"""One thread owns an engine; everybody else talks to that thread.

    asyncio                                    the engine's thread
    submit(requests) --- inbox --->            engine.submit, engine.cancel
    Feed.take()      <-- call_soon --          engine.step() -> events, every few milliseconds

A small model steps many times in those: to wake the event loop and to write to every socket each time would take longer
than the steps. First and last tokens are told at once. The engine never waits for a reader: a feed keeps what its
reader has not taken, up to a bound, and is then ended. A reader who goes closes its feed, and the slots are free before
the next step. When the engine fails, so does every live request, with the reason, and `failure` says so from then on.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from moonlet.generate.request import Event, Request
from moonlet.serve.errors import ApiError
from moonlet.serve.limits import Limits, option

T = TypeVar("T")
log = logging.getLogger("moonlet.serve")

_STATS_SECONDS = 0.1
# Whenever the event loop touches a socket it gives the interpreter's lock away, and has it back after this many seconds
# at the latest; the usual 5 ms, many times a request, would be all its time while the engine computes.
_SWITCH_SECONDS = 0.0002
# Between a token and its telling. At 200 times a second nobody sees a text jump.
_HOLD_SECONDS = 0.005
SHUTTING_DOWN = "the server is shutting down"


class Engine(Protocol):
    """What a driver needs of the batching engine (`moonlet.generate.batch`); one thread calls it."""

    def submit(self, request: Request) -> int: ...

    def cancel(self, ticket: int) -> None: ...

    def step(self) -> list[Event]: ...

    @property
    def idle(self) -> bool: ...

    def stats(self) -> Any: ...

    def close(self) -> None: ...


class Feed:
    """The events of the requests that were submitted together, for one reader on one event loop."""

    def __init__(self, driver: Driver, many: int, most: int) -> None:
        self.tickets: list[int | None] = [None] * many
        """The engine's number of each request, None before it has one and after its end; the engine's thread's own."""
        self.begun = False
        """Whether its reader was told of a token; the engine's thread's own."""
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self._driver, self._most = driver, most
        self._events: deque[tuple[int, Event]] = deque()
        self._error: ApiError | None = None
        self._some = asyncio.Event()
        self.overrun = asyncio.Event()
        """Set when too much was left unread; a reader that is stuck in sending learns of it by this."""

    async def take(self) -> list[tuple[int, Event]]:
        """Everything that came since the last call, at least one: (which of the requests, event).

        Raises:
            ApiError: the engine failed, the server stops, or too much was left unread.
        """
        await self._some.wait()
        self._some.clear()
        taken = list(self._events)
        self._events.clear()
        if not taken and self._error is not None:
            self._some.set()
            raise self._error
        if self._error is not None:
            self._some.set()
        return taken

    def drop(self, index: int) -> None:
        """One of the requests needs no more tokens."""
        self._driver.drop(self, [index])

    def close(self) -> None:
        """The reader has gone, or has all it wants; to be called always, and does nothing the second time."""
        if not self.closed:
            self.closed = True
            self._driver.drop(self, range(len(self.tickets)))

    def push(self, events: Sequence[tuple[int, Event]]) -> None:
        """On the event loop: more has come."""
        if self.closed or self._error is not None:
            return
        self._events.extend(events)
        if len(self._events) > self._most:
            self._events.clear()
            self.overrun.set()
            self.fail(
                ApiError(
                    408,
                    f"more than {self._most} tokens were left unread, which is this server's limit; read faster, or "
                    f"start the server with {option('unread')}",
                    code="unread_limit",
                )
            )
            self._driver.drop(self, range(len(self.tickets)))
            return
        self._some.set()

    def fail(self, error: ApiError) -> None:
        """On the event loop: nothing more will come."""
        self._error = self._error or error
        self._some.set()


class Driver:
    """Runs an engine in a thread of its own.

    Args:
        make: builds the engine; called in that thread.
        slots: texts the engine continues at once.
        limits: how many may wait, and how much may be left unread.
    """

    def __init__(self, make: Callable[[], Engine], slots: int, limits: Limits) -> None:
        self.slots = slots
        self.failure: str | None = None
        """Why the engine no longer works, a line; None while it does."""
        self.stopping = False
        self._make, self._limits = make, limits
        self._engine: Engine | None = None
        self._inbox: deque[Callable[[Engine], None]] = deque()
        self._wake = threading.Condition()
        self._open = 0  # requests that were taken in and have not ended; under _wake
        self._feeds: dict[int, tuple[Feed, int]] = {}  # ticket -> feed, place in it; the thread's own
        self._untold: dict[Feed, list[tuple[int, Event]]] = {}  # the thread's own too
        self._told_at = 0.0
        self._joining: set[asyncio.Future[Any]] = set()  # submissions on their way to the engine; under _wake
        self._quit = False
        self._stats: Any | None = None
        self._stats_at = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; the second time nothing happens."""
        if self._thread is None:
            sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_SECONDS))
            self._thread = threading.Thread(target=self._run, name="moonlet-engine", daemon=True)
            self._thread.start()

    @property
    def open(self) -> int:
        """Requests that were taken in and have not ended: those in slots and those that wait."""
        return self._open

    def stats(self) -> Any | None:
        """What the engine counts; None before it is built and after it failed."""
        return None if self.failure else self._stats

    async def submit(self, requests: Sequence[Request]) -> Feed:
        """Hand requests to the engine, all or none.

        Raises:
            ApiError: 429 where the queue is full, 400 for what can never fit, 503 where nothing can be computed.
        """
        feed = Feed(self, len(requests), self._limits.unread)
        accepted: asyncio.Future[None] = feed.loop.create_future()
        with self._wake:
            self._admit(len(requests))
            self._open += len(requests)
            self._joining.add(accepted)
            self._inbox.append(lambda engine: self._join(engine, feed, requests, accepted))
            self._wake.notify()
        try:
            await accepted
        except BaseException:
            feed.close()
            raise
        return feed

    async def call(self, work: Callable[[], T]) -> T:
        """Something else that needs the model, done in the engine's thread between two steps.

        Raises:
            ApiError: 400 with the message of a ValueError, 500 for any other error, 429 where the queue is full, 503
                where nothing can be done.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def run(engine: Engine) -> None:
            error, result = None, None
            try:
                result = work()
            except ValueError as refused:
                error = ApiError(400, " ".join(str(refused).split()))
            except Exception:  # of this caller alone: the texts that are being written go on
                log.exception("a look at the model failed")
                error = ApiError(500, "the server made a mistake; its log says which", code="bug")
            self._ended(1)
            with self._wake:
                self._joining.discard(done)
            _on(done.get_loop(), _settle, done, error, result)

        with self._wake:
            self._admit(1)
            self._open += 1
            self._joining.add(done)
            self._inbox.append(run)
            self._wake.notify()
        return await done

    def drop(self, feed: Feed, places: Sequence[int]) -> None:
        """End some requests of a feed, from any thread; those that have ended are left alone."""
        with self._wake:
            self._inbox.append(lambda engine: self._cancel(engine, feed, places))
            self._wake.notify()

    def drain(self) -> None:
        """Take nothing new in; what is live goes on."""
        self.stopping = True

    def close(self, wait: float = 5.0) -> None:
        """End everything live with an error, and the thread with it."""
        self.stopping = True
        with self._wake:
            self._quit = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(wait)

    def _admit(self, many: int) -> None:
        if self.failure is not None:
            raise ApiError(503, f"the engine has failed: {self.failure}; restart the server", code="engine_failed")
        if self.stopping:
            raise ApiError(503, SHUTTING_DOWN, code="shutting_down")
        places = self.slots + self._limits.queue
        if many > places:
            raise ApiError(
                400,
                f"the request asks for {many} answers, and this server's slots and queue hold {places}; ask for fewer, "
                f"or start the server with --slots or {option('queue')}",
                code="queue_limit",
            )
        if self._open + many > places:
            raise ApiError(
                429,
                f"{self._open} answers are under way or waiting and {many} more were asked for, while this server's "
                f"slots and queue hold {places}; try again in a moment",
                code="queue_limit",
                headers={"Retry-After": "1"},
            )

    # From here on: in the engine's thread.

    def _run(self) -> None:
        reason = SHUTTING_DOWN
        try:
            self._engine = engine = self._make()
            while True:
                self._look(engine)
                with self._wake:
                    while not self._inbox and engine.idle and not self._quit:
                        self._wake.wait()
                    if self._quit:
                        break
                    commands = list(self._inbox)
                    self._inbox.clear()
                if commands:  # which may take long, and a new prompt does
                    self._tell()
                for command in commands:
                    command(engine)
                if not engine.idle:
                    self._deliver(engine.step())
        except Exception as error:
            log.exception("the engine failed")
            self.failure = reason = " ".join(f"{type(error).__name__}: {error}".split())
        finally:
            self._end(ApiError(503, reason, code="shutting_down" if self.failure is None else "engine_failed"))
            if self._engine is not None:
                self._engine.close()

    def _look(self, engine: Engine) -> None:
        """Keep what the engine counts for other threads, who must not ask it; now and then is often enough."""
        now = time.monotonic()
        if engine.idle or now - self._stats_at > _STATS_SECONDS:
            self._stats, self._stats_at = engine.stats(), now

    def _join(self, engine: Engine, feed: Feed, requests: Sequence[Request], accepted: asyncio.Future[None]) -> None:
        error: ApiError | None = None
        for place, request in enumerate(requests):
            try:
                ticket = engine.submit(request)
            except ValueError as refused:
                error = ApiError(400, " ".join(str(refused).split()))
                self._cancel(engine, feed, range(place))
                self._ended(len(requests) - place)
                break
            feed.tickets[place] = ticket
            self._feeds[ticket] = feed, place
        with self._wake:
            self._joining.discard(accepted)
        _on(feed.loop, _settle, accepted, error)

    def _cancel(self, engine: Engine, feed: Feed, places: Sequence[int]) -> None:
        for place in places:
            ticket = feed.tickets[place]
            if ticket is not None:
                engine.cancel(ticket)
                self._forget(ticket)

    def _deliver(self, events: Sequence[Event]) -> None:
        """Sort one step's events by reader, and tell them when it is time."""
        now = time.monotonic() - self._told_at > _HOLD_SECONDS
        for event in events:
            found = self._feeds.get(event.ticket)
            if found is None:
                continue  # cancelled meanwhile
            feed, place = found
            self._untold.setdefault(feed, []).append((place, event))
            if event.finish is not None:
                self._forget(event.ticket)
            if event.finish is not None or not feed.begun:
                feed.begun = now = True
        if now:
            self._tell()

    def _tell(self) -> None:
        """Pass on what was held back; each event loop is woken once."""
        by_loop: dict[asyncio.AbstractEventLoop, dict[Feed, list[tuple[int, Event]]]] = {}
        for feed, events in self._untold.items():
            by_loop.setdefault(feed.loop, {})[feed] = events
        self._untold = {}
        self._told_at = time.monotonic()
        for loop, feeds in by_loop.items():
            _on(loop, _push, feeds)

    def _forget(self, ticket: int) -> None:
        feed, place = self._feeds.pop(ticket)
        feed.tickets[place] = None
        self._ended(1)

    def _ended(self, many: int) -> None:
        with self._wake:
            self._open -= many

    def _end(self, error: ApiError) -> None:
        """No event will come any more: tell all who wait."""
        self._tell()
        with self._wake:
            self.stopping = True
            feeds = {feed for feed, _ in self._feeds.values()}
            joining, self._joining = self._joining, set()
            self._inbox.clear()
            self._open = 0
        self._feeds.clear()
        for feed in feeds:
            _on(feed.loop, feed.fail, error)
        for accepted in joining:
            _on(accepted.get_loop(), _settle, accepted, error)


def _on(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: object) -> None:
    """Call on an event loop, which may have been closed."""
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        if not loop.is_closed():
            raise


def _push(feeds: dict[Feed, list[tuple[int, Event]]]) -> None:
    for feed, events in feeds.items():
        feed.push(events)


def _settle(waited: asyncio.Future[Any], error: ApiError | None, result: Any = None) -> None:
    if waited.done():
        return  # whoever waited has gone
    if error is None:
        waited.set_result(result)
    else:
        waited.set_exception(error)
