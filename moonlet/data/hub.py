"""What a file on the Hugging Face hub is, and its bytes from any place on.

    HEAD {endpoint}/datasets/{repository}/resolve/{revision}/{file}   ->  size, digest, commit
    GET  the same, Range: bytes=N-                                    ->  the bytes from N on

The hub answers for a large file with a redirect to another host, and names in the redirect's own headers the sha256 of
the file (X-Linked-Etag) and its size (X-Linked-Size). A small file comes from the hub itself; its ETag is git's sha1.

The standard library does this in full; huggingface_hub could not stop after the first part of a file, which is all that
a run on some of the stories needs. Its environment variables mean the same here: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO, Any
from urllib.parse import quote, urljoin, urlsplit

# Seconds that the first answer may take: who has no network learns it soon, though a name server may never answer.
FIRST_ANSWER = 8.0
# Seconds without a byte after which a transfer counts as cut.
SILENCE = 30.0
_REDIRECTS = 5


class Unreachable(ValueError):
    """The hub cannot be reached, or not now."""


class Refused(ValueError):
    """The hub was reached and does not give the file. `status` is that of HTTP, 0 where it is not the reason."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Remote:
    """A file on the hub.

    Attributes:
        url: where it is asked for.
        size: in bytes; None where the server does not say.
        digest: sha256 (64 hex digits) or git's sha1 of a blob (40) of its bytes, or "" where the server names none.
        commit: the repository's commit, or "".
    """

    url: str
    size: int | None
    digest: str
    commit: str


def file_url(repository: str, file: str, revision: str = "main") -> str:
    """The address of a data set's file, at HF_ENDPOINT or huggingface.co."""
    return f"{endpoint()}/datasets/{repository}/resolve/{quote(revision, safe='')}/{quote(file)}"


def endpoint() -> str:
    """HF_ENDPOINT, or the hub's own address."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def look_up(url: str) -> Remote:
    """Ask what the file is.

    Raises:
        Unreachable: HF_HUB_OFFLINE is set, or there is no answer within some seconds.
        Refused: the server does not give the file.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise Unreachable("HF_HUB_OFFLINE is set")
    answers: SimpleQueue[Remote | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(_head(url))
        except Exception as error:
            answers.put(error)

    # In a thread, because looking up a name and trying one address after another have no time limit of their own.
    Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=FIRST_ANSWER)
    except Empty:
        raise Unreachable(f"no answer within {FIRST_ANSWER:g} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


@contextmanager
def open_from(remote: Remote, start: int) -> Iterator[tuple[int, IO[bytes]]]:
    """The bytes of a file from `start` on.

    Yields:
        Where the stream begins (0 when the server cannot begin elsewhere) and the stream, which may end early.

    Raises:
        Unreachable: no connection, or the server is busy or out of order.
        Refused: the server does not give the file, or has none from `start` on.
    """
    request = _request(remote.url, "GET")
    if start:
        request.add_header("Range", f"bytes={start}-")
    with _errors(remote.url), urllib.request.build_opener(_Redirects).open(request, timeout=SILENCE) as response:
        first = 0
        if response.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != start:
                raise Refused(f"{remote.url}: asked for the bytes from {start} on and was given others")
            if remote.size is not None and found[2] not in ("*", str(remote.size)):
                raise Refused(f"{remote.url}: {found[2]} bytes, but {remote.size} a moment ago; try again")
            first = start
        yield first, response


def _head(url: str) -> Remote:
    commit, here = "", url
    with _errors(url):
        for _ in range(_REDIRECTS):
            request = _request(here, "HEAD")
            if urlsplit(here).netloc != urlsplit(url).netloc:
                request.remove_header("Authorization")
            headers, target = _answer(request)
            commit = commit or headers.get("X-Repo-Commit", "")
            if target is None or "X-Linked-Etag" in headers:
                return _remote(url, headers, commit)
            here = _redirected(here, target)
    raise Refused(f"{url}: more than {_REDIRECTS} redirects")


def _answer(request: urllib.request.Request) -> tuple[Message, str | None]:
    """The headers of one answer, and where it redirects to, if it does."""
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=FIRST_ANSWER) as response:
            return response.headers, None
    except urllib.error.HTTPError as error:
        with error:
            if error.code not in (301, 302, 303, 307, 308):
                raise
            return error.headers, error.headers.get("Location")


def _remote(url: str, headers: Message, commit: str) -> Remote:
    size = headers.get("X-Linked-Size") or headers.get("Content-Length") or ""
    tag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"').lower()
    digest = tag if re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", tag) else ""
    return Remote(url, int(size) if size.isdigit() else None, digest, commit)


def _request(url: str, method: str) -> urllib.request.Request:
    # A file packed for the way could not be asked for from its middle.
    request = urllib.request.Request(url, method=method, headers={"Accept-Encoding": "identity"})
    request.add_header("User-Agent", "moonlet")
    if token := os.environ.get("HF_TOKEN"):
        request.add_header("Authorization", f"Bearer {token.strip()}")
    return request


@contextmanager
def _errors(url: str) -> Iterator[None]:
    """Turn what the network can raise into our two errors, one line each."""
    try:
        yield
    except urllib.error.HTTPError as error:
        if error.code in (408, 429) or error.code >= 500:
            raise Unreachable(f"the server answers {error.code} {error.reason}") from None
        way_out = {
            401: "; set HF_TOKEN to a token that may read it",
            403: "; set HF_TOKEN to a token that may read it",
            416: "; the bytes asked for lie behind its end",
        }
        raise Refused(f"{url}: {error.code} {error.reason}{way_out.get(error.code, '')}", error.code) from None
    except urllib.error.URLError as error:
        reason = error.reason
        raise Unreachable(str(getattr(reason, "strerror", None) or reason or "no connection")) from None
    except (HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise Unreachable(str(error) or type(error).__name__) from None


def _redirected(here: str, target: str) -> str:
    new = urljoin(here, target)
    allowed = ("https",) if urlsplit(here).scheme == "https" else ("http", "https")
    if urlsplit(new).scheme not in allowed:
        raise Refused(f"{here}: redirected to {new}, which is not {' or '.join(allowed)}")
    return new


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; the token stays with the host that it is for."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, _redirected(req.full_url, newurl))
        if new is not None and new.host != req.host:
            new.remove_header("Authorization")
        return new


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
