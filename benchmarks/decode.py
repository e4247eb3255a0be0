"""Cached generation: moonlet against transformers and llama.cpp, the same weights, taking turns.

    python benchmarks/decode.py                                   # k2-nano and k2-small, batch 1 and 16
    python benchmarks/decode.py --models k2-nano --batch 1 --rounds 9
    pip install gguf llama-cpp-python                             # for llama.cpp, which is left out where it is missing

Weights are random and written once as a Hugging Face model; transformers loads that, llama.cpp a GGUF made of the same
weights (`gguf_model.py`), whose logits and first tokens are compared with moonlet's before anything is timed. All
decode greedily. Every peer's settings are tried first (attention, experts, threads, layout), in fp32 and in bf16, and
its fastest go into the rounds; ratios are taken round by round.

moonlet runs as the bare step and as `complete`, which also reads the prompt, draws, decodes bytes and looks for ends;
transformers as a bare loop over its cache and as `generate`; llama.cpp as a loop over `llama_decode`. "bound" is how
many tokens a second reading the weights allows, at the bandwidth measured here (`bandwidth.py`); a model that fits into
the processor's cache may exceed it.
"""

from __future__ import annotations

import argparse
import json
import os
import string
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from bandwidth import bound, read_bandwidth
from decode_entries import (
    BYTES,
    DTYPES,
    PROMPT_IDS,
    Entry,
    Task,
    fastest,
    llama_candidates,
    moonlet_candidates,
    moonlet_complete,
    moonlet_models,
    transformers_candidates,
    transformers_generate,
)
from gguf_model import check, write_gguf
from llama_peer import LlamaWorker
from small_runs import table
from steps import machine, ratios

from moonlet.config import ModelConfig, preset
from moonlet.hub.write import write_model
from moonlet.model.count import count
from moonlet.model.init import build
from moonlet.model.model import CausalLM
from moonlet.ops.allocator import keep_freed_memory

QUICK = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 32,
    "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "intermediate_size": 96,
    "moe_intermediate_size": 32, "vocab_size": 320,
}  # fmt: skip
# Of logits from the same fp32 weights. Where weights are rounded an expert may be another one, and nothing is near.
_NEAR = 1e-3


def make_model(name: str, quick: bool) -> CausalLM:
    """Random weights, large enough that every part has its say in the logits, or comparing these would show little.

    All tokens but printable characters get a logit of zero, which is never the largest: no text ends early, peers
    without a tokenizer draw what a server may, and each token is a piece of text that a server has to send.
    """
    config = preset(name)
    if config.num_kda_layers:
        config = config.replace(rms_norm_eps=1e-6)  # the only one that llama.cpp computes KDA's lengths with
    elif quick:
        config = config.replace(**QUICK)
    model = build(config.replace(initializer_range=1.25 * config.hidden_size**-0.5)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        silent = torch.ones(config.vocab_size, dtype=torch.bool)
        silent[BYTES.encode(string.printable)] = False
        model.lm_head.weight[silent] = 0.0
        for buffer in model.buffers():
            if buffer.is_floating_point():  # the bias by which experts are chosen
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
    return model


def start_llama(model: CausalLM, folder: Path, kinds: Sequence[str]) -> dict[str, LlamaWorker]:
    """llama.cpp with the model in every type, by name; empty, and a line said, where it is not to be had."""
    missing = [package for package in ("gguf", "llama_cpp") if not find_spec(package)]
    try:
        if missing:
            raise ValueError(f"{' and '.join(missing)} not installed: pip install gguf llama-cpp-python")
        check(model)
    except ValueError as error:
        print(f"llama.cpp is left out: {error}", file=sys.stderr, flush=True)
        return {}
    workers = {}
    for kind in kinds:
        for name, repack in ((kind, True), (f"{kind}, as stored", False)):
            try:
                file = folder / f"{kind}.gguf"
                workers[name] = LlamaWorker(file if file.is_file() else write_gguf(model, file, kind), repack)
                workers[name].decode([PROMPT_IDS], 1, 1)
            except ValueError as error:
                print(f"llama.cpp, {name}: left out ({error})", file=sys.stderr, flush=True)
                workers.pop(name, None)
    return workers


@torch.inference_mode()
def compare(model: CausalLM, workers: dict[str, LlamaWorker], tokens: int = 16) -> list[str]:
    """How near llama.cpp's numbers are to moonlet's, a line a type.

    Raises:
        ValueError: its fp32 logits are not moonlet's.
    """
    ids = torch.tensor([PROMPT_IDS])
    want = model(ids)[0, -1].numpy()
    for _ in range(tokens):
        ids = torch.cat((ids, model.last_logits(ids).argmax(-1, keepdim=True)), 1)
    ours = ids[0, len(PROMPT_IDS) :].tolist()
    lines = []
    for name, worker in workers.items():
        error = float(abs(worker.logits(PROMPT_IDS) - want).max() / abs(want).max())
        theirs = worker.decode([PROMPT_IDS], tokens - 1, 1, exact=True)[0][0]
        same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), tokens)
        if name.startswith("F32") and error > _NEAR:
            raise ValueError(f"llama.cpp, {name}, computes something else: its logits are off by {error:.1e}")
        lines.append(f"llama.cpp, {name}: logits within {error:.1e} of moonlet's fp32, first {same} tokens the same")
    return lines


def contenders(task: Task, workers: dict[str, LlamaWorker], quick: bool) -> list[Entry]:
    """Of every family and dtype the fastest setting, in the ways it is used."""
    entries: list[Entry] = []
    trial, tries = (2, 1) if quick else (max(8, task.tokens // 4), 3)
    for dtype in DTYPES:
        for model, exact in moonlet_models(task, dtype):
            loop = fastest(moonlet_candidates(task, model, dtype, exact), trial, tries)
            entries += [loop, moonlet_complete(task, loop)] if loop else []
        settings = islice(transformers_candidates(task, dtype), 1 if quick else None)
        peer = fastest(settings, trial, tries) if find_spec("transformers") else None
        entries += [peer, transformers_generate(task, peer)] if peer else []
    for kind in dict.fromkeys(name.partition(",")[0] for name in workers):
        peer = fastest(llama_candidates(task, workers, kind), trial, tries)
        entries += [peer] if peer else []
    return entries


def contest(entries: Sequence[Entry], rounds: int, tokens: int) -> list[list[float]]:
    """Tokens a second of each, a number a round, in turn."""
    speeds: list[list[float]] = [[] for _ in entries]
    for entry in entries:
        entry.run(4)
    for _ in range(rounds):
        for entry, found in zip(entries, speeds, strict=True):
            found.append(entry.run(tokens))
    return speeds


def report(
    config: ModelConfig, rows: int, entries: Sequence[Entry], speeds: Sequence[list[float]], bandwidth: float
) -> str:
    """A markdown table; ratios are to the fastest of transformers' `generate`, and to llama.cpp's fp32 or bf16."""
    exact = ("llama.cpp, F32", "llama.cpp, BF16")
    kinds = {
        "x transformers": [i for i, e in enumerate(entries) if "generate" in e.name],
        "x llama.cpp": [i for i, e in enumerate(entries) if e.name.startswith(exact)],
    }
    peers = {name: max(found, key=lambda i: median(speeds[i])) for name, found in kinds.items() if found}
    lines = [["", "threads", "tokens/s, median", "min - max", *peers, "of the bound"]]
    for i, (entry, found) in enumerate(zip(entries, speeds, strict=True)):
        cells = []
        for peer in peers.values():
            middle, low, high = ratios(found, speeds[peer])
            cells.append("1" if peer == i else f"{middle:.2f} ({low:.2f} - {high:.2f})")
        most = bound(config, rows, 1, bandwidth) / entry.width
        lines.append([entry.name, entry.threads, f"{median(found):,.0f}", f"{min(found):,.0f} - {max(found):,.0f}",
                      *cells, f"{median(found) / most:.0%} of {most:,.0f}"])  # fmt: skip
    return table(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["k2-nano", "k2-small"], help="presets")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128, help="a row in a round; a quarter of it for large models")
    cores = os.cpu_count() or 1
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores}), help="numbers that are tried")
    kinds = ["F32", "BF16", "Q8_0", "Q4_0"]
    parser.add_argument("--gguf", nargs="*", choices=kinds, default=kinds, help="types for llama.cpp; none: without it")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--quick", action="store_true", help="a trial of seconds; its numbers mean nothing")
    given = parser.parse_args(arguments)
    if given.quick:
        given.models, given.rounds, given.tokens, given.threads = given.models[:1], 2, 4, [1]
        given.gguf = given.gguf[:2]
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, compare, try, time, print."""
    given = parse(arguments)
    keep_freed_memory()
    size = 2**24 if given.quick else 2**29
    widths = {threads: read_bandwidth(threads, 0.1 if given.quick else 1.5, size) for threads in given.threads}
    bandwidth = max(widths.values())
    measured = ", ".join(f"{value / 1e9:.1f} GB/s on {threads}" for threads, value in widths.items())
    print(f"{machine()}; memory is read at {measured} thread(s)\n", flush=True)
    numbers: dict[str, Any] = {"machine": machine(), "bandwidth": widths, "tokens_per_s": {}}
    for name in given.models:
        with tempfile.TemporaryDirectory(prefix="moonlet-bench-") as work:
            folder = Path(work)
            model = make_model(name, given.quick)
            write_model(model, folder)
            workers = start_llama(model, folder, given.gguf) if given.gguf else {}
            try:
                _one_model(name, model, folder, workers, bandwidth, given, numbers)
            finally:
                for worker in workers.values():
                    worker.close()
    if given.json:
        given.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def _one_model(
    name: str,
    model: CausalLM,
    folder: Path,
    workers: dict[str, LlamaWorker],
    bandwidth: float,
    given: argparse.Namespace,
    numbers: dict[str, Any],
) -> None:
    sizes = count(model.config)
    for line in compare(model, workers):
        print(line)
    tokens = given.tokens if sizes.active < 2e7 else max(8, given.tokens // 4)
    for rows in given.batch:
        task = Task(folder, rows, tokens, tuple(given.threads))
        entries = contenders(task, workers, given.quick)
        speeds = contest(entries, given.rounds, tokens)
        print(f"\n{name}, {sizes.total / 1e6:.1f} M parameters, {sizes.active_with_head / 1e6:.1f} M met by a token, "
              f"batch {rows}, {given.rounds} rounds of {tokens} tokens a row, in turn:\n\n"
              f"{report(model.config, rows, entries, speeds, bandwidth)}\n", flush=True)  # fmt: skip
        numbers["tokens_per_s"][f"{name}, batch {rows}"] = {
            e.name: found for e, found in zip(entries, speeds, strict=True)
        }


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
