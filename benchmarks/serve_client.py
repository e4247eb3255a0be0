"""A server of moonlet's as a peer: its process, and a client that costs it nothing it can help.

The client stands in the same machine and takes its time from the same processor, so it does no more than a client must:
plain sockets in one thread, looking into what comes only for the first token and the end. They are opened anew for each
burst, before the clock starts, as a server closes those that are idle for long.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
_END, _CHUNKED = b"0\r\n\r\n", -1  # of a response in chunks, and what stands for its length


@dataclass
class Burst:
    """What some requests, sent at once, came to.

    Attributes:
        first: seconds to the first token, a request each.
        seconds: from the first request to the end of the last answer.
        tokens: drawn for all of them, by the server's own count.
        texts: the answers.
    """

    first: list[float]
    seconds: float
    tokens: int
    texts: list[str]

    @property
    def rate(self) -> float:
        """Tokens a second, reading the prompts included."""
        return self.tokens / self.seconds


class Server:
    """`moonlet serve FOLDER` in a process of its own.

    Args:
        threads: of the model's computation.

    Raises:
        ValueError: it does not start; the message has its last words.
    """

    def __init__(self, folder: Path, slots: int, threads: int) -> None:
        self.threads = threads
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moonlet", "serve", str(folder), "--port", "0", "--slots", str(slots)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(_ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        found = re.search(r"http://([\d.]+):(\d+)", self._process.stdout.readline())
        if not found:
            assert self._process.stderr is not None
            last = self._process.stderr.read().strip().splitlines()[-1:]
            raise ValueError(f"moonlet's server ended: {last[0][:160] if last else self._process.wait()}")
        # Nobody reads its log; a full pipe would stop it.
        self._log = subprocess.Popen(["cat"], stdin=self._process.stderr, stdout=subprocess.DEVNULL)
        self._address = found[1], int(found[2])

    def ask(self, prompts: Sequence[str], tokens: int, stream: bool = True) -> Burst:
        """Continue the prompts greedily, all at once, a connection each.

        Raises:
            ValueError: an answer that is none.
        """
        used = [_Connection(self._address) for _ in prompts]
        with ExitStack() as open_now, selectors.DefaultSelector() as waiting:
            for one in used:
                open_now.enter_context(one.socket)
                waiting.register(one.socket, selectors.EVENT_READ, one)
            start = time.perf_counter()
            for one, prompt in zip(used, prompts, strict=True):
                one.send(prompt, tokens, stream)
            open_ = len(used)
            while open_:
                for key, _ in waiting.select(60):
                    if key.data.receive():
                        waiting.unregister(key.fileobj)
                        open_ -= 1
            seconds = time.perf_counter() - start
        answers = [one.answer(stream) for one in used]
        return Burst(
            [one.first - start for one in used], seconds, sum(n for _, n in answers), [text for text, _ in answers]
        )

    def close(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(timeout=30)
        self._log.wait(timeout=30)


@dataclass
class _Connection:
    """One socket, and what has come of the answer to its last request."""

    address: tuple[str, int]
    first: float = 0.0
    came: bytearray = field(default_factory=bytearray)
    length: int = 0  # of the whole response, as soon as its head tells

    def __post_init__(self) -> None:
        self.socket = socket.create_connection(self.address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, prompt: str, tokens: int, stream: bool) -> None:
        self.first, self.came, self.length = 0.0, bytearray(), 0
        ask: dict[str, Any] = {"prompt": prompt, "max_tokens": tokens, "temperature": 0}
        if stream:
            ask |= {"stream": True, "stream_options": {"include_usage": True}}
        body = json.dumps(ask).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self.address[0]}\r\nContent-Type: application/json\r\n"
        self.socket.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def receive(self) -> bool:
        """Take what has come. -> whether it is all"""
        got = self.socket.recv(1 << 18)
        if not got:
            raise ValueError("moonlet's server closed a connection in the middle")
        self.came += got
        if not self.length:
            head = self.came.find(b"\r\n\r\n") + 4
            told = re.search(rb"content-length: (\d+)", self.came[:head].lower())
            self.length = head + int(told[1]) if told else _CHUNKED if head > 3 else 0
        if not self.first and (self.length > 0 or b"data: " in got):
            self.first = time.perf_counter()
        return self.came.endswith(_END) if self.length == _CHUNKED else len(self.came) == self.length

    def answer(self, stream: bool) -> tuple[str, int]:
        """Text, and tokens drawn."""
        if not self.came.startswith(b"HTTP/1.1 200"):
            body = bytes(self.came[self.came.index(b"\r\n\r\n") + 4 :])
            raise ValueError(f"moonlet's server refused: {body[:300].decode(errors='replace')}")
        if not stream:
            whole = json.loads(self.came[self.came.index(b"\r\n\r\n") + 4 :])
            return whole["choices"][0]["text"], whole["usage"]["completion_tokens"]
        events = [json.loads(e) for e in re.findall(rb"data: (\{.*\})\n\n", self.came)]
        return "".join(e["choices"][0]["text"] for e in events if e["choices"]), events[-1]["usage"][
            "completion_tokens"
        ]
