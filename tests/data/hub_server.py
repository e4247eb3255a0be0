"""A local stand-in for the Hugging Face hub: a redirect to "another host" that sends ranges, and every way to fail."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STORIES = "/datasets/roneneldan/TinyStories/resolve/main/"


@dataclass
class Hub:
    """What the server holds, how it behaves, and what it was asked.

    files: content by name.
    redirect: answer with a redirect to /cdn/..., as the hub does for large files.
    ranges: honour Range.
    cut_after: break each of the next `cuts` transfers off after so many bytes.
    digest: what to claim instead of the sha256.
    status: answer everything so.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    redirect: bool = True
    ranges: bool = True
    cut_after: int = 0
    cuts: int = 0
    digest: str = ""
    status: int = 0
    sent: int = 0
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    tokens: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Run the server in a thread; `hub.url` is its address, by two names so that a redirect changes the host."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            asked = self.headers.get("Range", "")
            hub.asked.append((self.command, self.path, asked))
            hub.tokens.append((self.path, self.headers.get("Authorization", "")))
            name = self.path.rpartition("/")[2]
            content = hub.files.get(name)
            if hub.status or content is None:
                self.send_error(hub.status or 404)
                return
            if hub.redirect and self.path.startswith(STORIES):
                self.send_response(302)
                self.send_header("Location", hub.url.replace("127.0.0.1", "localhost") + f"/cdn/{name}")
                self.send_header("X-Linked-Etag", f'"{hub.digest or hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("X-Repo-Commit", "c0ffee")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_content(content, asked if hub.ranges else "", body)

        def send_content(self, content: bytes, asked: str, body: bool) -> None:
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            if start >= len(content) and asked:
                self.send_error(416)
                return
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("ETag", f'"{git_sha1(content)}"')
            rest = content[start:]
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            if not body:
                return
            if hub.cuts > 0:
                hub.cuts -= 1
                rest = rest[: hub.cut_after]
            for at in range(0, len(rest), 2**14):
                try:
                    self.wfile.write(rest[at : at + 2**14])
                except OSError:
                    return
                hub.sent += len(rest[at : at + 2**14])
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def git_sha1(content: bytes) -> str:
    """git's id of a blob, which is the hub's ETag of a small file."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
