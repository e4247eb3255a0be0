"""Two hundred clients of one server, as a program of its own, so that they share nothing with the server they press.

    stays    reads its stream to the end, as fast as it comes
    dawdles  reads its stream to the end, a little at a time through a small window, so that the server has to wait
    leaves   closes its connection in the middle of its stream, which would be far longer than the others'

`python -m tests.serve.crowd PORT SEED` prints one JSON object once all have ended: {"texts": {client: text}, "left":
{client: when}}, times as `time.monotonic` tells them, which is the same clock in every process. Plain sockets and
HTTP/1.0, where a body ends with its connection.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
import time
from typing import Any

CLIENTS = 200
STAYS, DAWDLES, LEAVES = "stays", "dawdles", "leaves"
PROMPTS = 5
NO_END = {"1": -100}  # the byte tokenizer's end of a text: none ends before it is left


def parts(seed: int) -> list[str]:
    """What each client does: three of ten leave, one of ten dawdles."""
    kinds = [LEAVES] * (CLIENTS * 3 // 10) + [DAWDLES] * (CLIENTS // 10)
    kinds += [STAYS] * (CLIENTS - len(kinds))
    random.Random(seed).shuffle(kinds)
    return kinds


def asked(client: int, part: str) -> dict[str, Any]:
    """A client's request. Those who leave are known by their number of tokens; those who dawdle ask for so much about
    each token that no buffer holds it."""
    own = client % PROMPTS
    tokens = {STAYS: 24, DAWDLES: 160, LEAVES: 1500 + client}[part]
    body = {"prompt": f"client {own}", "max_tokens": tokens, "seed": own, "stream": True, "logit_bias": NO_END}
    return body | ({"logprobs": 20} if part == DAWDLES else {})


def text_of(body: str) -> str:
    """The text of a whole stream."""
    assert body.endswith("data: [DONE]\n\n"), body[-200:]
    events = [json.loads(line[6:]) for line in body.split("\n\n")[:-2]]
    return "".join(choice["text"] for event in events for choice in event["choices"])


async def client(port: int, number: int, part: str) -> str | float:
    """One client: the text it was sent, or when it left."""
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        if part == DAWDLES:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        await loop.sock_connect(connection, ("127.0.0.1", port))
        body = json.dumps(asked(number, part)).encode()
        head = "POST /v1/completions HTTP/1.0", "Host: 127.0.0.1", "Content-Type: application/json"
        length = f"Content-Length: {len(body)}"
        await loop.sock_sendall(connection, "\r\n".join([*head, length, "", ""]).encode() + body)
        received = b""
        while piece := await loop.sock_recv(connection, 4096):
            received += piece
            if part == LEAVES and received.count(b"data: ") > number % 7:
                connection.close()
                return time.monotonic()
            if part == DAWDLES:
                await asyncio.sleep(0.01)
    headers, _, answer = received.decode().partition("\r\n\r\n")
    assert headers.startswith("HTTP/1.1 200 "), headers
    return text_of(answer)


async def main(port: int, seed: int) -> dict[str, dict[int, Any]]:
    """All of them at once."""
    found = await asyncio.gather(*(client(port, number, part) for number, part in enumerate(parts(seed))))
    return {
        "texts": {number: text for number, text in enumerate(found) if isinstance(text, str)},
        "left": {number: when for number, when in enumerate(found) if isinstance(when, float)},
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))))
