"""Who may talk to the server: checked before anything else, for every path alike.

    Host             an address in numbers, "localhost", or a name that was allowed: a name that a stranger's DNS made
                     to point here (DNS rebinding) is none of these
    Origin           absent, the server's own, or one that was allowed: a page of another site cannot use the server
    Sec-Fetch-Site   not from another site, but for following a link to a page
    Authorization    the key, compared in constant time, on every path but /health; Bearer, or Basic with the key as the
                     password, which is what a browser asks its user for
    Content-Length   within the limit; a body is counted as it arrives, and has to arrive in time

A POST must say that it sends JSON: a form of another site cannot do so without asking first, and is not answered. No
answer allows a foreign page to read it, unless its origin was allowed by name. The key is in no message and no log.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moonlet.serve.errors import ApiError
from moonlet.serve.limits import Limits, option

OPEN_PATHS = frozenset({"/health"})
CSP_API = "default-src 'none'; frame-ancestors 'none'"
CSP_PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_LEAST_KEY = 8
_MOST_DISCARDED = 64 << 20  # bytes of a refused body that are read, so that its sender gets to read the refusal
_DISCARD_SECONDS = 2.0


@dataclass(frozen=True)
class Access:
    """Who may talk to a server.

    Attributes:
        key: what a client has to know; None: nothing.
        hosts: names, beside addresses and "localhost", by which the server may be called.
        origins: foreign pages' origins, as "https://example.org:8443", that may use the server from a browser.
    """

    key: str | None = field(default=None, repr=False)
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        key = self.key
        if key is not None and (len(key) < _LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key):
            raise ValueError(
                f"the API key must have at least {_LEAST_KEY} characters, all of them printable ASCII without spaces"
            )
        for origin in self.origins:
            if "://" not in origin or origin.endswith("/") or "*" in origin:
                raise ValueError(f"origin {origin!r} must be spelt as a browser does: https://example.org:8443")


class Guard:
    """An ASGI application that lets through to another what `Access` and `Limits` allow."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits) -> None:
        self._app, self._access, self._limits = app, access, limits
        self._key = None if access.key is None else access.key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then pass on."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        allowed = self._foreign(headers)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": _with_defaults(message.get("headers", ()), allowed)}
            await send(message)

        try:
            self._check(scope, headers)
        except ApiError as error:
            await _refuse(error, receive, sending)
            return
        if scope["method"] == "OPTIONS" and allowed is not None:
            await _preflight(sending)
            return
        try:
            self._check_size(scope, headers)
            body = await asyncio.wait_for(_read(receive, self._limits), self._limits.body_seconds)
        except ApiError as error:
            await _refuse(error, receive, sending)
            return
        except TimeoutError:
            message = (
                f"the request did not arrive within {self._limits.body_seconds:g} s, this server's limit; send it "
                f"faster, or start the server with {option('body_seconds')}"
            )
            await _refuse(ApiError(408, message, code="body_seconds_limit"), None, sending)
            return
        if body is None:
            return  # the client has gone
        await self._app(scope, _replay(body, receive), sending)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._knows(host):
            raise ApiError(
                403,
                f"Host {host[:80]!r} is not this server; call it by its address, or start it with --allowed-host",
                code="host",
            )
        origin = headers.get(b"origin")
        if origin is not None and self._foreign(headers) is None and not _same(origin.decode("latin-1"), host):
            raise ApiError(403, "pages of other origins may not use this server; see --allowed-origin", code="origin")
        link = headers.get(b"sec-fetch-mode") == b"navigate" and scope["method"] == "GET"
        site = headers.get(b"sec-fetch-site", b"none")
        if site not in (b"none", b"same-origin") and not link and self._foreign(headers) is None:
            raise ApiError(403, "pages of other sites may not use this server; see --allowed-origin", code="origin")
        if scope["method"] == "OPTIONS" and self._foreign(headers) is not None:
            return  # a browser asks without credentials whether it may
        if self._key is not None and scope["path"] not in OPEN_PATHS and not self._has_key(headers):
            # What the page itself asks gets no dialog of the browser's: the page has a field for the key.
            asked = scope["path"].startswith(("/v1/", "/moonlet/"))
            scheme = "Bearer" if asked else 'Basic realm="moonlet", charset="UTF-8"'
            raise ApiError(
                401,
                "the API key is missing or wrong; send it as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": scheme},
            )

    def _check_size(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        length = headers.get(b"content-length", b"0")
        if length.isdigit():
            self._limits.check("body_bytes", int(length[:30]), "the request's size in bytes")
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != b"application/json":
            raise ApiError(415, "requests are JSON: send Content-Type: application/json", code="content_type")

    def _knows(self, host: str) -> bool:
        name = _name(host)
        if name == "localhost" or name in self._access.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _foreign(self, headers: dict[bytes, bytes]) -> bytes | None:
        """The origin of the page that asks, if it is another's and was allowed."""
        origin = headers.get(b"origin", b"")
        return origin if origin.decode("latin-1") in self._access.origins else None

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        assert self._key is not None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                given = b""
        elif scheme.lower() != b"bearer":
            given = b""
        return hmac.compare_digest(given.strip(), self._key)


def _name(host: str) -> str:
    """The host of a Host header, without its port and brackets."""
    if host.startswith("["):
        inner, closed, _ = host[1:].partition("]")
        return inner if closed else ""
    return host.partition(":")[0].lower().removesuffix(".")


def _same(origin: str, host: str) -> bool:
    """Whether an origin is the server's own; behind a proxy the scheme may differ from ours."""
    return origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")


def _with_defaults(headers: Iterable[tuple[bytes, bytes]], foreign: bytes | None) -> list[tuple[bytes, bytes]]:
    given = list(headers)
    names = {name.lower() for name, _ in given}
    added = [*_HEADERS, (b"content-security-policy", CSP_API.encode()), (b"cache-control", b"no-store")]
    if foreign is not None:
        added = [(name, value) for name, value in added if name != b"cross-origin-resource-policy"]
        added += [(b"access-control-allow-origin", foreign), (b"vary", b"Origin")]
    return given + [(name, value) for name, value in added if name not in names]


async def _preflight(send: Send) -> None:
    headers = [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", b"authorization, content-type"),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _read(receive: Receive, limits: Limits) -> bytes | None:
    """The whole body; None where the client went before it had sent it."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        limits.check("body_bytes", size, "the request's size in bytes, so far,")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then what comes after it."""
    given = False

    async def replaying() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replaying


async def _refuse(error: ApiError, receive: Receive | None, send: Send) -> None:
    """Answer with an error, and read what is still being sent: a connection that is closed on a client who is sending
    takes the answer with it."""
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status in (408, 413):
        headers.append((b"connection", b"close"))
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    if receive is not None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_discard(receive), _DISCARD_SECONDS)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    size = 0
    while size < _MOST_DISCARDED:
        message = await receive()
        size += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
