"""What `decode.py` times: moonlet, transformers and llama.cpp decoding greedily from the same weights.

An entry is ready to run: called, it decodes and says how many tokens a second that were, over all rows. Which settings
an entry has was found by trials (`fastest`): each peer takes the numbers of threads, the implementations and the way of
loading that suit it best here.
"""

from __future__ import annotations

import gc
import os
import random
import string
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

import moonlet.generate as generation
from moonlet.generate import SamplingParams, complete, lay_out
from moonlet.hub.read import read_model
from moonlet.model.model import CausalLM
from moonlet.text import ByteTokenizer

PROMPT = "Once upon a time there was"
BYTES = ByteTokenizer()
DTYPES = ("float32", "bfloat16")
PROMPT_IDS = [BYTES.bos_id, *BYTES.encode(PROMPT)]


@dataclass(frozen=True)
class Task:
    """One table: where the weights lie, and how much is decoded."""

    folder: Path
    rows: int
    tokens: int
    threads: tuple[int, ...]  # numbers of threads that are tried
    alike: bool = True  # whether all rows begin alike, and so go on alike and meet the same experts

    def prompts(self) -> Tensor:
        """[rows, T]"""
        if self.alike:
            return torch.tensor([PROMPT_IDS] * self.rows)
        texts = prompt_texts(len(PROMPT_IDS), seed=0)
        return torch.tensor([[BYTES.bos_id, *BYTES.encode(next(texts))] for _ in range(self.rows)])


def prompt_texts(tokens: int, seed: int) -> Iterator[str]:
    """Texts without end, all different, each of so many tokens, [BOS] included."""
    letters = random.Random(seed)
    while True:
        yield "".join(letters.choices(string.ascii_letters, k=tokens - 1))


@dataclass
class Entry:
    """One line of the table."""

    family: str  # "moonlet", "transformers", "llama.cpp"
    name: str
    width: float  # bytes a weight
    threads: int
    decode: Callable[[int], float]  # tokens a row -> tokens a second over all rows
    model: Any = None  # what its other way of decoding is built from
    exact: bool = True  # moonlet: each row as it would be alone

    def run(self, tokens: int) -> float:
        """Decode on its number of threads."""
        torch.set_num_threads(self.threads)
        return self.decode(tokens)


def fastest(candidates: Iterable[Callable[[], Entry]], tokens: int, tries: int = 3) -> Entry | None:
    """The entry that decodes fastest in a trial; one that cannot run says so in one line and is left out."""
    best: tuple[float, Entry] | None = None
    for make in candidates:
        try:
            entry = make()
            entry.run(2)
            rate = max(entry.run(tokens) for _ in range(tries))
        except Exception as error:  # a peer may fail in any way; the others go on
            first = next(iter(str(error).strip().splitlines()), "no message")
            print(f"a setting is not here ({type(error).__name__}: {first[:140]})", file=sys.stderr, flush=True)
            continue
        if best is None or rate > best[0]:
            best = rate, entry
        del entry
        gc.collect()
    return best[1] if best else None


# moonlet


def moonlet_models(task: Task, dtype: str) -> Iterator[tuple[CausalLM, bool]]:
    """The model, for each way that a batch can be taken: every row as it would be alone, or together."""
    model = read_model(task.folder, "cpu", getattr(torch, dtype)).eval()
    lay_out(model)
    yield model, True
    if task.rows > 1 and not _step(model, exact=False).exact:  # a step that is exact anyhow has no other way
        yield model, False


def moonlet_candidates(task: Task, model: CausalLM, dtype: str, exact: bool) -> Iterator[Callable[[], Entry]]:
    """Each number of threads."""
    for threads in task.threads:

        def make(threads: int = threads) -> Entry:
            torch.set_num_threads(threads)
            return moonlet_loop(task, model, dtype, threads, exact)

        yield make


def _step(model: CausalLM, exact: bool) -> Any:
    """The step that moonlet's engine takes: native where it runs."""
    return getattr(generation, "new_step", generation.Step)(model, exact)


def moonlet_loop(task: Task, model: CausalLM, dtype: str, threads: int, exact: bool) -> Entry:
    """The decode step and argmax."""
    step = _step(model, exact)

    @torch.inference_mode()
    def run(tokens: int) -> float:
        prompt = task.prompts()
        cache = model.new_cache(task.rows, prompt.shape[1] + tokens)
        token = model.last_logits(prompt, cache).argmax(-1)
        start = time.perf_counter()
        for _ in range(tokens):
            token = step(token, cache).argmax(-1)
        return task.rows * tokens / (time.perf_counter() - start)

    how = "" if exact else ", shared products"
    width = getattr(torch, dtype).itemsize
    return Entry("moonlet", f"moonlet step, {dtype}{how}", width, threads, run, model, exact)


def moonlet_complete(task: Task, loop: Entry) -> Entry:
    """What a user calls: reads the prompt, draws, decodes bytes and looks for ends too."""

    def run(tokens: int) -> float:
        params = SamplingParams(max_new_tokens=tokens, temperature=0.0)
        start = time.perf_counter()
        done = complete(loop.model, BYTES, [PROMPT] * task.rows, params, task.rows, loop.exact)
        seconds = time.perf_counter() - start
        assert all(len(c.token_ids) == tokens for c in done)
        return task.rows * tokens / seconds

    return Entry("moonlet", loop.name.replace("step", "complete"), loop.width, loop.threads, run)


# transformers


def transformers_candidates(task: Task, dtype: str) -> Iterator[Callable[[], Entry]]:
    """Every attention, every implementation of the experts, each number of threads."""
    for attention, experts in product(("eager", "sdpa"), ("eager", "batched_mm", "grouped_mm")):
        kept: dict[str, Any] = {}
        for threads in task.threads:

            def make(
                attention: str = attention, experts: str = experts, threads: int = threads, kept: Any = kept
            ) -> Entry:
                if not kept:
                    kept["model"] = _load(task.folder, dtype, attention, experts)
                return transformers_loop(task, kept["model"], f"{dtype}, {attention}, {experts}", threads)

            yield make


def _load(folder: Path, dtype: str, attention: str, experts: str) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=attention, experts_implementation=experts
    )
    return model.eval()


def transformers_loop(task: Task, model: Any, how: str, threads: int) -> Entry:
    """Its forward over its own cache, and argmax."""
    from transformers import DynamicCache

    @torch.inference_mode()
    def run(tokens: int) -> float:
        cache = DynamicCache(config=model.config)

        def next_token(ids: Tensor) -> Tensor:
            out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token: Tensor = out.logits[:, -1].argmax(-1, keepdim=True)
            return token

        token = next_token(task.prompts())
        start = time.perf_counter()
        for _ in range(tokens):
            token = next_token(token)
        return task.rows * tokens / (time.perf_counter() - start)

    return Entry("transformers", f"transformers loop, {how}", model.dtype.itemsize, threads, run, model)


def transformers_generate(task: Task, loop: Entry) -> Entry:
    """What its users call."""
    model = loop.model

    def run(tokens: int) -> float:
        ids = task.prompts()
        start = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=BYTES.pad_id,
        )
        return task.rows * tokens / (time.perf_counter() - start)

    return Entry("transformers", loop.name.replace("loop", "generate"), loop.width, loop.threads, run)


# llama.cpp


def llama_candidates(
    task: Task, workers: dict[str, Any], kind: str, reading: bool = False
) -> Iterator[Callable[[], Entry]]:
    """Each number of threads, and both layouts of the weights.

    Args:
        reading: whether the time of reading the prompts counts.
        workers: processes by name, "KIND" and "KIND, as stored" (llama.cpp may order weights anew when it loads them).
    """
    widths = {"F32": 4.0, "BF16": 2.0, "Q8_0": 34 / 32, "Q4_0": 18 / 32, "BF16+Q4_0": 2.0}
    names = [name for name in workers if name.partition(",")[0] == kind]
    for name, threads in product(names, task.threads):

        def make(name: str = name, threads: int = threads) -> Entry:
            def run(tokens: int) -> float:
                _, read, seconds = workers[name].decode(task.prompts().tolist(), tokens, threads)
                return task.rows * tokens / (read + seconds if reading else seconds)

            return Entry("llama.cpp", f"llama.cpp, {name}", widths[kind], threads, run)

        yield make
