"""Serving: moonlet's server against transformers and llama.cpp, the same weights, taking turns.

    pip install "moonlet[serve]"
    python benchmarks/serve.py                                    # k2-nano, k2-small, linear-mini; batch 1, 4 and 16
    python benchmarks/serve.py --models k2-nano --batch 16 --rounds 9
    pip install gguf llama-cpp-python                             # for llama.cpp, which is left out where it is missing

moonlet answers requests over HTTP, as many at once as the batch has rows, each with a prompt of its own: streamed, an
event a token, and whole. The time is that from the first request to the end of the last answer, so that reading the
prompts, drawing, decoding and the network's share are in it, and so is the client, which runs on the same cores. Beside
it stand its engine without a server and the bare step, which say where the time goes. transformers is timed as
`generate` on one batch of such prompts, llama.cpp as a loop over `llama_decode` that reads them at once; neither has
anything to send, and llama.cpp's loop makes no text. All decode greedily, each with the settings (threads, attention,
experts, layout) that were fastest in a trial.

Weights are random, written once a form (fp32, bf16, INT4 experts beside bf16), and no text ends early. The server's
first tokens are compared with the model's own, and those with llama.cpp's, before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from bandwidth import read_bandwidth, step_bytes
from decode import compare, make_model, start_llama
from decode_entries import (
    BYTES,
    PROMPT_IDS,
    Entry,
    Task,
    fastest,
    llama_candidates,
    moonlet_loop,
    prompt_texts,
    transformers_candidates,
    transformers_generate,
)
from llama_peer import LlamaWorker
from serve_client import Server
from small_runs import table
from steps import machine, ratios

from moonlet.config import ModelConfig
from moonlet.generate import SamplingParams, lay_out
from moonlet.generate.batch import Engine
from moonlet.generate.request import Request
from moonlet.hub.read import read_model
from moonlet.hub.write import write_model
from moonlet.model.count import count
from moonlet.model.model import CausalLM
from moonlet.ops.allocator import keep_freed_memory

FORMS = {"fp32": "float32", "bf16": "bfloat16", "int4": "bfloat16"}
# llama.cpp's nearest; with all matrices at four bits it has less to read than INT4 experts leave.
_PEERS = {"fp32": ("F32",), "bf16": ("BF16",), "int4": ("BF16+Q4_0", "Q4_0")}
_BITS = {"fp32": 32.0, "bf16": 16.0, "int4": 4.5}  # of a routed expert's weight; scales included
_SLOTS = 16


@dataclass
class Peer:
    """One line of a table.

    Attributes:
        form: of the weights, one of `FORMS`.
        run: tokens a row -> tokens a second over all rows.
        first: tokens of a prompt -> seconds to the first token, alone; None where that means nothing.
    """

    name: str
    form: str
    threads: int
    run: Callable[[int], float]
    first: Callable[[int], float] | None = None


def write_forms(model: CausalLM, folder: Path) -> dict[str, Path]:
    """A folder for each form of the weights."""
    ids = {"bos_token_id": BYTES.bos_id, "eos_token_id": BYTES.eos_id, "pad_token_id": BYTES.pad_id}
    folders = {form: folder / form for form in FORMS}
    for form, path in folders.items():
        path.mkdir()
        write_model(model, path, ids, None if form == "fp32" else form)
        BYTES.save(path)
    return folders


class Prompts:
    """Texts that nobody has seen: what a server has read once it need not read again."""

    def __init__(self) -> None:
        self._texts: dict[int, Iterator[str]] = {}

    def text(self, tokens: int) -> str:
        """One of so many tokens, [BOS] included."""
        return next(self._texts.setdefault(tokens, prompt_texts(tokens, seed=1)))

    def ids(self, tokens: int) -> list[int]:
        """The same as ids."""
        return [BYTES.bos_id, *BYTES.encode(self.text(tokens))]


def moonlet_peers(
    folder: Path, form: str, servers: Sequence[Server], task: Task, prompts: Prompts, trial: int
) -> Iterator[Peer]:
    """Step, engine, server; each on the number of threads that suits it."""
    model = read_model(folder, "cpu", getattr(torch, FORMS[form])).eval()
    lay_out(model)

    def step(threads: int) -> Entry:
        return moonlet_loop(task, model, FORMS[form], threads, True)

    def engine(threads: int) -> Entry:
        return Entry("moonlet", "engine", 0, threads, _engine(model, task.rows, prompts))

    for name, make in (("step", step), ("engine", engine)):
        found = fastest([partial(make, threads) for threads in task.threads], trial)
        if found:
            yield Peer(f"moonlet {name}, {form}", form, found.threads, found.run)
    for how, stream in (("streamed", True), ("whole", False)):
        tried = [Entry("moonlet", how, 0, s.threads, _http(s, task.rows, prompts, stream), s) for s in servers]
        found = fastest([partial(_itself, entry) for entry in tried], trial)
        if found:
            first = _first_http(found.model, prompts) if stream else None
            yield Peer(f"moonlet HTTP, {how}, {form}", form, found.threads, found.decode, first)


def _itself(entry: Entry) -> Entry:
    return entry


def _engine(model: CausalLM, rows: int, prompts: Prompts) -> Callable[[int], float]:
    engine = Engine(model, BYTES, slots=_SLOTS)

    def run(tokens: int) -> float:
        params = SamplingParams(max_new_tokens=tokens, temperature=0.0)
        start = time.perf_counter()
        for _ in range(rows):
            engine.submit(Request(tuple(prompts.ids(len(PROMPT_IDS))), params))
        while not engine.idle:
            engine.step()
        return rows * tokens / (time.perf_counter() - start)

    return run


def _http(server: Server, rows: int, prompts: Prompts, stream: bool) -> Callable[[int], float]:
    def run(tokens: int) -> float:
        burst = server.ask([prompts.text(len(PROMPT_IDS)) for _ in range(rows)], tokens, stream)
        if burst.tokens != rows * tokens:
            raise ValueError(f"{burst.tokens} tokens came and {rows} x {tokens} were asked for")
        return burst.rate

    return run


def _first_http(server: Server, prompts: Prompts) -> Callable[[int], float]:
    return lambda tokens: server.ask([prompts.text(tokens)], 2).first[0]


def transformers_peers(folder: Path, form: str, task: Task, prompts: Prompts, trial: int) -> Iterator[Peer]:
    """Its `generate`, with the settings that suit it."""
    found = fastest(transformers_candidates(replace(task, folder=folder), FORMS[form]), trial)
    if found is None:
        return
    model = found.model

    def first(tokens: int) -> float:
        torch.set_num_threads(found.threads)
        ids = torch.tensor([prompts.ids(tokens)])
        start = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False,
                       pad_token_id=BYTES.pad_id)  # fmt: skip
        return time.perf_counter() - start

    entry = transformers_generate(task, found)
    yield Peer(entry.name, form, entry.threads, entry.run, first)


def llama_peers(workers: dict[str, LlamaWorker], form: str, task: Task, prompts: Prompts, trial: int) -> Iterator[Peer]:
    """Its loop, with the layout and the number of threads that suit it."""
    for kind in _PEERS[form]:
        found = fastest(llama_candidates(task, workers, kind, reading=True), trial)
        if found:
            worker, threads = workers[found.name.removeprefix("llama.cpp, ")], found.threads
            yield Peer(found.name, form, threads, found.run, _first_llama(worker, threads, prompts))


def _first_llama(worker: LlamaWorker, threads: int, prompts: Prompts) -> Callable[[int], float]:
    return lambda tokens: worker.first(prompts.ids(tokens), threads)


def same_text(server: Server, model: CausalLM, tokens: int = 32) -> int:
    """How many of the server's first tokens are those of the model's own forward, without a cache, in fp32."""
    prompt = BYTES.decode(PROMPT_IDS[1:])
    ids = torch.tensor([PROMPT_IDS])
    with torch.inference_mode():
        for _ in range(tokens):
            ids = torch.cat((ids, model.last_logits(ids).argmax(-1, keepdim=True)), 1)
    want = BYTES.decode(ids[0, len(PROMPT_IDS) :].tolist())
    got = server.ask([prompt], tokens).texts[0]
    return next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), min(len(got), len(want)))


def contest(
    peers: Sequence[Peer], rounds: int, tokens: int, lengths: Sequence[int]
) -> tuple[list[list[float]], list[dict[int, list[float]]]]:
    """Tokens a second, and seconds to the first token by length of the prompt, a number a round, in turn."""
    speeds: list[list[float]] = [[] for _ in peers]
    firsts: list[dict[int, list[float]]] = [{length: [] for length in lengths if p.first} for p in peers]
    for peer in peers:
        peer.run(4)
    for _ in range(rounds):
        for peer, found, first in zip(peers, speeds, firsts, strict=True):
            found.append(peer.run(tokens))
            for length, times in first.items():
                assert peer.first is not None
                times.append(peer.first(length))
    return speeds, firsts


def report(
    peers: Sequence[Peer],
    speeds: Sequence[Sequence[float]],
    firsts: Sequence[dict[int, list[float]]],
    lengths: Sequence[int],
) -> str:
    """A markdown table; ratios are to transformers' and llama.cpp's fastest form of no fewer bits, round by round."""
    order = list(FORMS)

    def rival(family: str, form: str) -> int | None:
        able = [i for i, p in enumerate(peers) if p.name.startswith(family)]
        like = [i for i in able if (peers[i].form == "int4") == (form == "int4")] or able
        return max(like, key=lambda i: median(speeds[i])) if like else None

    head = ["", "threads", "tokens/s, median", "min - max", "x transformers", "x llama.cpp"]
    lines = [[*head, *(f"first of {length}, ms" for length in lengths)]]
    for i in sorted(range(len(peers)), key=lambda i: (order.index(peers[i].form), i)):
        peer, found = peers[i], speeds[i]
        cells = []
        for family in ("transformers", "llama.cpp"):
            other = rival(family, peer.form)
            if other is None or not peer.name.startswith("moonlet"):
                cells.append("")
            else:
                middle, low, high = ratios(found, speeds[other])
                cells.append(f"{middle:.2f} ({low:.2f} - {high:.2f})")
        times = [f"{1e3 * median(firsts[i][length]):.1f}" if firsts[i] else "" for length in lengths]
        lines.append([peer.name, str(peer.threads), f"{median(found):,.0f}", f"{min(found):,.0f} - {max(found):,.0f}",
                      *cells, *times])  # fmt: skip
    return table(lines)


def limits(
    config: ModelConfig, rows: int, peers: Sequence[Peer], speeds: Sequence[Sequence[float]], width: float
) -> Iterator[str]:
    """Where a step's time goes, a line a form: what reading the weights takes, and what each layer adds to it."""
    for form in FORMS:
        ms = {p.name: 1e3 * rows / median(s) for p, s in zip(peers, speeds, strict=True) if p.form == form}
        step, engine, http = (ms.get(f"moonlet {name}, {form}") for name in ("step", "engine", "HTTP, streamed"))
        if step and engine and http:
            read = 1e3 * _bytes(config, rows, form) / width
            yield (
                f"{form}: {http:.2f} ms a step through HTTP: weights {read:.2f} at {width / 1e9:.0f} GB/s, "
                f"the rest of the step {step - read:+.2f}, engine {engine - step:+.2f}, HTTP {http - engine:+.2f}"
            )


def _bytes(config: ModelConfig, rows: int, form: str) -> float:
    if form != "int4":
        return step_bytes(config, rows, int(_BITS[form]) // 8)
    met = count(config).routed_experts * (1 - (1 - config.num_experts_per_tok / config.n_routed_experts) ** rows)
    return step_bytes(config, rows, 2) - met * (2 - _BITS["int4"] / 8)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["k2-nano", "k2-small", "linear-mini"], help="presets")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16], help=f"requests at once, up to {_SLOTS}")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128, help="a row in a round")
    parser.add_argument("--prompts", type=int, nargs="*", default=[32, 512], help="lengths, for the first token")
    cores = os.cpu_count() or 1
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores}), help="numbers that are tried")
    parser.add_argument("--without", nargs="*", choices=["transformers", "llama.cpp"], default=[])
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--quick", action="store_true", help="a trial of seconds; its numbers mean nothing")
    given = parser.parse_args(arguments)
    if given.quick:
        given.models, given.rounds, given.tokens, given.threads = given.models[:1], 2, 4, [1]
        given.batch, given.prompts, given.forms = given.batch[-1:], given.prompts[:1], given.forms[-2:]
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, compare, try, time, print."""
    given = parse(arguments)
    keep_freed_memory()
    width = max(read_bandwidth(threads, 0.1 if given.quick else 1.5) for threads in given.threads)
    print(f"{machine()}; memory is read at {width / 1e9:.1f} GB/s\n", flush=True)
    numbers: dict[str, Any] = {"machine": machine(), "bandwidth": width, "tokens_per_s": {}, "first_token_s": {}}
    for name in given.models:
        with tempfile.TemporaryDirectory(prefix="moonlet-bench-") as work:
            _one_model(name, Path(work), width, given, numbers)
    if given.json:
        given.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def _one_model(name: str, work: Path, width: float, given: argparse.Namespace, numbers: dict[str, Any]) -> None:
    model = make_model(name, given.quick)
    folders = write_forms(model, work)
    kinds = [] if "llama.cpp" in given.without else [kind for form in given.forms for kind in _PEERS[form]]
    workers = start_llama(model, work, kinds) if kinds else {}
    servers: dict[str, list[Server]] = {}
    try:
        for form in given.forms:
            servers[form] = [Server(folders[form], _SLOTS, threads) for threads in given.threads]
        if "fp32" in servers:
            print(f"moonlet's server: {same_text(servers['fp32'][0], model)} of 32 tokens are the model's own, fp32")
        for line in compare(model, workers):
            print(line)
        sizes = count(model.config)
        for rows in given.batch:
            peers = _peers(folders, servers, workers, rows, given)
            speeds, firsts = contest(peers, given.rounds, given.tokens, given.prompts)
            print(f"\n{name}, {sizes.total / 1e6:.1f} M parameters, {sizes.active_with_head / 1e6:.1f} M met by a "
                  f"token, batch {rows}, {given.rounds} rounds of {given.tokens} tokens a row, in turn:\n\n"
                  f"{report(peers, speeds, firsts, given.prompts)}\n")  # fmt: skip
            print("\n".join(limits(model.config, rows, peers, speeds, width)), "\n", flush=True)
            key = f"{name}, batch {rows}"
            numbers["tokens_per_s"][key] = {p.name: s for p, s in zip(peers, speeds, strict=True)}
            numbers["first_token_s"][key] = {p.name: f for p, f in zip(peers, firsts, strict=True) if f}
    finally:
        for worker in workers.values():
            worker.close()
        for server in (server for some in servers.values() for server in some):
            server.close()


def _peers(
    folders: dict[str, Path],
    servers: dict[str, list[Server]],
    workers: dict[str, LlamaWorker],
    rows: int,
    given: argparse.Namespace,
) -> list[Peer]:
    prompts, tokens, trial = Prompts(), given.tokens, 2 if given.quick else max(8, given.tokens // 4)
    found: list[Peer] = []
    for form in given.forms:
        task = Task(folders[form], rows, tokens, tuple(given.threads), alike=False)
        found += moonlet_peers(folders[form], form, servers[form], task, prompts, trial)
        if form != "int4" and "transformers" not in given.without and find_spec("transformers"):
            found += transformers_peers(folders[form], form, task, prompts, trial)
        found += llama_peers(workers, form, task, prompts, trial)
    return found


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
