"""One process that encodes: `python -m moonlet.data.worker TOKENIZER_FOLDER DTYPE`, started by `moonlet.data.pool`.

It says who it is in one line of JSON, then answers group after group until its input ends:

    in:  n, n sizes, the texts' UTF-8       out:  n, n lengths, the tokens      (or 2, FAILED, size, the error)

Counts, sizes and lengths are little-endian uint32.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from moonlet.data.encode import encode_group
from moonlet.text.tokenizer import Tokenizer

# No document has so many tokens.
FAILED = 2**32 - 1


def identity(tokenizer: Tokenizer) -> dict[str, object]:
    """What two tokenizers have in common if and only if they give the same ids."""
    kind = type(tokenizer)
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "hash": tokenizer.content_hash(),
        "size": tokenizer.vocab_size,
    }


def write_numbers(pipe: IO[bytes], numbers: NDArray[np.uint32]) -> None:
    """Write how many numbers there are, then the numbers."""
    pipe.write(len(numbers).to_bytes(4, "little") + numbers.astype("<u4", copy=False).tobytes())


def read_numbers(pipe: IO[bytes]) -> NDArray[np.uint32]:
    """Read what `write_numbers` wrote. Raises EOFError where the pipe ends."""
    count = int.from_bytes(read_exactly(pipe, 4), "little")
    return np.frombuffer(read_exactly(pipe, 4 * count), dtype="<u4")


def read_exactly(pipe: IO[bytes], size: int) -> bytes:
    """`size` bytes. Raises EOFError where the pipe ends before."""
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError(f"the pipe ended {size - len(data)} bytes early")
    return data


def serve(tokenizer: Tokenizer, dtype: str, source: IO[bytes], sink: IO[bytes]) -> None:
    """Answer groups from `source` until it ends."""
    sink.write(json.dumps(identity(tokenizer)).encode() + b"\n")
    sink.flush()
    while True:
        try:
            sizes = read_numbers(source)
            texts = read_exactly(source, int(sizes.sum(dtype=np.uint64)))
        except EOFError:
            return
        ends = np.cumsum(sizes, dtype=np.uint64).tolist()
        group = [texts[end - size : end] for end, size in zip(ends, sizes.tolist(), strict=True)]
        try:
            encoded = encode_group(tokenizer, group, dtype)
        except ValueError as error:
            message = str(error).encode("utf-8")
            write_numbers(sink, np.array([FAILED, len(message)], dtype=np.uint32))
            sink.write(message)
        else:
            write_numbers(sink, encoded.lengths)
            sink.write(encoded.tokens.tobytes())
        sink.flush()


def main() -> None:
    """Serve stdin to stdout."""
    # Ctrl-C goes to all processes of the terminal; ours end when the one that started them does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from moonlet.text import load

    try:
        serve(load(Path(sys.argv[1])), sys.argv[2], sys.stdin.buffer, sys.stdout.buffer)
    except BrokenPipeError:
        sys.stderr.close()


if __name__ == "__main__":
    main()
