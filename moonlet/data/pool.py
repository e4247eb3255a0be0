"""Encoding on all cores: worker processes that each hold the tokenizer, results in the order of the documents.

    groups -> [a thread a worker: write the group to its pipe, read the tokens back] -> the oldest result first

Most tokenizers are Python, which threads do not speed up. The workers are started as a command (`moonlet.data.worker`)
and spoken to over pipes rather than through `multiprocessing`: that needs neither a fork of a process that holds the
threads of torch, nor a caller whose main module can be imported again, nor pickles. Only as many groups as there are
workers, and a few, are under way, so memory stays flat however fast the documents come.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import chain, islice
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

import numpy as np

from moonlet.data import worker as worker_module
from moonlet.data.encode import CannotEncode, Encoded, encode_group
from moonlet.data.worker import FAILED, read_exactly, read_numbers, write_numbers
from moonlet.text.tokenizer import Tokenizer

# Starting the workers takes about as long as encoding so many groups.
_WORTH_IT = 4


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode_all(
    tokenizer: Tokenizer, groups: Iterator[list[bytes]], dtype: str, workers: int | None = None
) -> Generator[Encoded]:
    """Encode every group, in order. Close the generator to stop before the end.

    Args:
        tokenizer: the encoding.
        groups: documents, from `moonlet.data.encode.grouped`.
        dtype: of the tokens.
        workers: processes; None takes one a core. 1, or a text of a few groups only, is encoded in this process.

    Raises:
        CannotEncode: a document cannot be encoded, or a worker has died.
    """
    first = list(islice(groups, _WORTH_IT + 1))
    groups = chain(first, groups)
    workers = cores() if workers is None else workers
    with ExitStack() as stack:
        pool = None
        if workers > 1 and len(first) > _WORTH_IT:
            pool = stack.enter_context(_Pool(tokenizer, dtype, workers))
        if pool is not None and pool.usable:
            yield from pool.encode(groups)
        else:
            yield from (encode_group(tokenizer, group, dtype) for group in groups)


class _Pool:
    """The workers, each waiting for a group."""

    def __init__(self, tokenizer: Tokenizer, dtype: str, workers: int) -> None:
        self._tokenizer, self._dtype = tokenizer, dtype
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="encode")
        self._folder = tempfile.TemporaryDirectory(prefix="moonlet-tokenizer-")
        self._workers = workers
        self.usable = False

    def __enter__(self) -> _Pool:
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Killed rather than asked: after an error a worker may be deep in a group that nobody wants any more.
        for process in self._processes:
            process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                # What was still to be written to a worker that is gone is lost, and wanted by nobody.
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()
        self._folder.cleanup()

    def encode(self, groups: Iterator[list[bytes]]) -> Iterator[Encoded]:
        """Encode the groups, in order."""
        pending: deque[Future[Encoded]] = deque()
        for group in groups:
            pending.append(self._threads.submit(self._encode, group))
            if len(pending) >= self._workers + 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _start(self) -> None:
        """Start the workers; the pool is usable when each has read the same tokenizer that we hold."""
        folder = Path(self._folder.name)
        self._tokenizer.save(folder)
        here = str(Path(__file__).parents[2])
        path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
        # A worker is one core's share: what runs in it must not start threads for all of them.
        environment = os.environ | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", worker_module.__name__, str(folder), self._dtype]
        for _ in range(self._workers):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
            )
            self._processes.append(process)
        wanted = worker_module.identity(self._tokenizer)
        for process in self._processes:
            assert process.stdout is not None
            # A tokenizer of the caller's own class reads back as another one, or not at all.
            if json.loads(process.stdout.readline() or b"{}") != wanted:
                return
            self._idle.put(process)
        self.usable = True

    def _encode(self, group: Sequence[bytes]) -> Encoded:
        process = self._idle.get()
        try:
            return self._ask(process, group)
        except (BrokenPipeError, EOFError):
            raise CannotEncode(
                f"a worker process that encodes text has ended (exit code {process.wait()}), perhaps for want of "
                f"memory; go on with fewer workers"
            ) from None
        finally:
            # A dead one too: a thread that waited for it in vain would wait for ever.
            self._idle.put(process)

    def _ask(self, process: subprocess.Popen[bytes], group: Sequence[bytes]) -> Encoded:
        assert process.stdin is not None
        assert process.stdout is not None
        sizes = np.array([len(data) for data in group], dtype="<u4")
        write_numbers(process.stdin, sizes)
        process.stdin.write(b"".join(group))
        process.stdin.flush()
        lengths = read_numbers(process.stdout)
        if len(lengths) == 2 and lengths[0] == FAILED:
            raise CannotEncode(read_exactly(process.stdout, int(lengths[1])).decode("utf-8"))
        dtype = np.dtype(self._dtype).newbyteorder("<")
        size = int(lengths.sum(dtype=np.uint64)) * dtype.itemsize
        return Encoded(np.frombuffer(read_exactly(process.stdout, size), dtype=dtype), lengths, sizes)
