"""llama.cpp as a peer: greedy decoding of a GGUF through its C interface, some sequences at once.

`llama_cpp` (pip install llama-cpp-python) is optional. Its low-level calls are used, because they alone decode many
sequences in one batch, and because a loop over them is the fastest that a Python program gets from the library.

It runs in a process of its own (`LlamaWorker`), which waits while it is not asked: its threads and those of PyTorch
would else be in each other's way, and a failed assertion inside it would end the benchmark.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BATCH = 512  # tokens it takes in at once


class LlamaModel:
    """One file, loaded once.

    Raises:
        ImportError: llama_cpp is missing.
        ValueError: llama.cpp does not load the file.
    """

    # Of the library, which calls it also when no model is left: it lives as long as this module.
    _quiet: Any = None

    def __init__(self, file: Path, repack: bool = True) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        if LlamaModel._quiet is None:
            LlamaModel._quiet = llama_cpp.llama_log_callback(_ignore)
        llama_cpp.llama_log_set(LlamaModel._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = repack
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
        if not self.model:
            raise ValueError(f"llama.cpp does not load {file}")
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def close(self) -> None:
        """Free it; sessions first."""
        if self.model:
            self.api.llama_model_free(self.model)
            self.model = None


class LlamaSession:
    """Decoding with one setting of threads: `rows` sequences of at most `length` tokens.

    `exact` keeps the cache and attention in fp32; as it comes, llama.cpp has them in fp16 and is quicker so.
    """

    def __init__(self, model: LlamaModel, rows: int, length: int, threads: int, exact: bool = False) -> None:
        api = self.api = model.api
        self.vocab_size, self.rows = model.vocab_size, rows
        params = api.llama_context_default_params()
        # Each sequence has a share of the context of its own; multiples of 256 are what the cache is cut into.
        params.n_ctx = rows * -(-length // 256) * 256
        params.n_batch = params.n_ubatch = max(_BATCH, rows)
        params.n_seq_max = rows
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = False
        if exact:
            params.type_k = params.type_v = 0  # GGML_TYPE_F32
            params.flash_attn_type = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.no_perf = True
        self.context = api.llama_init_from_model(model.model, params)
        if not self.context:
            raise ValueError(f"llama.cpp makes no context of {rows} sequences of {length} tokens")
        self._batch = api.llama_batch_init(max(_BATCH, rows), 0, 1)

    def close(self) -> None:
        """Free it."""
        if self.context:
            self.api.llama_batch_free(self._batch)
            self.api.llama_free(self.context)
            self.context = None

    def clear(self) -> None:
        """Forget all texts."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def prefill(self, prompts: list[list[int]]) -> NDArray[np.float32]:
        """Read a prompt into each sequence, as many at once as a batch holds; logits after them, [rows, vocabulary]."""
        out, together = [], max(1, _BATCH // len(prompts[0]))
        for first in range(0, len(prompts), together):
            entries = [
                (token, at, first + row, at == len(prompt) - 1)
                for row, prompt in enumerate(prompts[first : first + together])
                for at, token in enumerate(prompt)
            ]
            self._feed(entries)
            out += [self._logits(i).copy() for i, entry in enumerate(entries) if entry[-1]]
        return np.stack(out)

    def step(self, tokens: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        """One more token a sequence, at `position`; logits [rows, vocabulary]."""
        self._feed([(int(token), position, row, True) for row, token in enumerate(tokens)])
        return self._all()

    def decode(self, prompts: list[list[int]], tokens: int) -> tuple[list[list[int]], float, float]:
        """Greedy continuations of prompts of one length, and the seconds that reading these and the rest took."""
        self.clear()
        begin = time.perf_counter()
        token = self.prefill(prompts).argmax(-1)
        out, read = [token], time.perf_counter() - begin
        begin = time.perf_counter()
        for at in range(len(prompts[0]), len(prompts[0]) + tokens):
            token = self.step(token, at).argmax(-1)
            out.append(token)
        seconds = time.perf_counter() - begin
        return np.stack(out, 1).tolist(), read, seconds

    def first(self, prompt: list[int]) -> float:
        """Seconds to the first token of one sequence."""
        self.clear()
        begin = time.perf_counter()
        self.prefill([prompt]).argmax()
        return time.perf_counter() - begin

    def _feed(self, entries: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, (token, position, row, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, row, wanted
        status = self.api.llama_decode(self.context, batch)
        if status:
            raise ValueError(f"llama_decode returned {status}")

    def _logits(self, index: int) -> NDArray[np.float32]:
        pointer = self.api.llama_get_logits_ith(self.context, index)
        return np.ctypeslib.as_array(pointer, (self.vocab_size,))

    def _all(self) -> NDArray[np.float32]:
        """Where every token of the batch asked for its logits, they lie one after another."""
        return np.ctypeslib.as_array(self.api.llama_get_logits(self.context), (self.rows, self.vocab_size))


class LlamaWorker:
    """A file in a process of its own.

    Raises:
        ValueError: llama.cpp does not load the file, or its process ends; the message has its last words.
    """

    def __init__(self, file: Path, repack: bool = True) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(file), str(int(repack))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def decode(
        self, prompts: list[list[int]], tokens: int, threads: int, exact: bool = False
    ) -> tuple[list[list[int]], float, float]:
        """As `LlamaSession.decode`; the session is kept for the next call of the same size."""
        answer = self._ask({"prompts": prompts, "tokens": tokens, "threads": threads, "exact": exact})
        return answer["tokens"], answer["read"], answer["seconds"]

    def first(self, prompt: list[int], threads: int) -> float:
        """As `LlamaSession.first`."""
        seconds: float = self._ask({"prompts": [prompt], "tokens": 0, "threads": threads, "exact": False,
                                    "first": True})["seconds"]  # fmt: skip
        return seconds

    def logits(self, prompt: list[int]) -> NDArray[np.float32]:
        """Logits after a prompt, [vocabulary], attention in fp32."""
        ask = {"prompts": [prompt], "tokens": 0, "threads": 1, "exact": True, "logits": True}
        return np.array(self._ask(ask)["logits"], dtype=np.float32)

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(timeout=30)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended; what it said is read below
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            last = self._process.stderr.read().strip().splitlines()[-1:] or [f"exit code {self._process.wait()}"]
            raise ValueError(f"llama.cpp's process ended: {last[0][:160]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer


def serve(file: Path, repack: bool) -> None:
    """Answer questions, one a line, until there are no more."""

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), flush=True)

    try:
        model = LlamaModel(file, repack)
    except (ImportError, ValueError) as error:
        say({"error": str(error)})
        return
    say({"vocabulary": model.vocab_size})
    sessions: dict[tuple[int, int, int, bool], LlamaSession] = {}
    for line in sys.stdin:
        ask = json.loads(line)
        length = len(ask["prompts"][0]) + ask["tokens"] + 1
        key = len(ask["prompts"]), -(-length // 256) * 256, ask["threads"], ask["exact"]
        try:
            if key not in sessions:
                sessions[key] = LlamaSession(model, *key)
            if ask.get("logits"):
                sessions[key].clear()
                say({"logits": sessions[key].prefill(ask["prompts"])[0].tolist()})
            elif ask.get("first"):
                say({"seconds": sessions[key].first(ask["prompts"][0])})
            else:
                tokens, read, seconds = sessions[key].decode(ask["prompts"], ask["tokens"])
                say({"tokens": tokens, "read": read, "seconds": seconds})
        except ValueError as error:
            say({"error": str(error)})
    for session in sessions.values():
        session.close()
    model.close()


def _ignore(level: int, text: bytes, data: object) -> None:
    """llama.cpp is talkative."""


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2] == "1")
