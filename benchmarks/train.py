"""Training speed: moonlet against transformers' model of the same weights and a dense GPT of equal active parameters.

    python benchmarks/train.py                          # k2-nano with 6 layers, 32 x 256 tokens a step
    python benchmarks/train.py --no-compile --no-plain  # eager alone, one table: minutes instead of half an hour
    python benchmarks/train.py --preset linear-nano --batch 4
    python benchmarks/train.py --device cuda --preset k2-small --batch 16 --seq-len 1024 --no-plain

Peers run at their best: every setting of transformers (fp32 and bf16, its attentions and experts; compiled, both
attentions) and of the dense GPT (`dense_gpt.py`) is tried for some steps first, and the fastest of each kind goes into
the rounds. An entry takes whole training steps (forward, backward, clipping, optimizer) on the same tokens. The entries
take turns within a round, because a shared machine swings; a ratio is taken round by round.

Two tables. In the first all run in one process whose allocator is told to keep freed memory (`moonlet.ops.allocator`).
In the second each is started plainly, as a user would: every entry has a process of its own in every round, moonlet
with the allocator setting that its command line makes at start, the peers with none.

The share is that of the model's own products (three times a forward's) in what large products reach here, counted as
`moonlet train --dry-run` does, with every key; in brackets without the keys that the mask hides.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from small_runs import table
from steps import machine, ratios, speeds
from train_entries import Entry, Step, Work, build_step, dense_entries, entry, moonlet_entries, transformers_entries

from moonlet.config import preset
from moonlet.ops.allocator import keep_freed_memory
from moonlet.train.probe import measure_rates, synchronise

Rates = dict[Entry, list[float]]
_TRIALS = 3
QUICK = {
    "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 8, "intermediate_size": 48, "moe_intermediate_size": 16, "vocab_size": 256,
}  # fmt: skip


def work_of(given: argparse.Namespace) -> Work:
    """The model and its tokens."""
    config = preset(given.preset)
    changes: dict[str, Any] = {"num_hidden_layers": given.layers} if given.layers else {}
    if given.quick:
        changes |= {"num_hidden_layers": 2, **QUICK}
    if config.linear_attn_config is not None and "num_hidden_layers" in changes:
        layers = changes["num_hidden_layers"]
        kda = [layer for layer in range(1, layers + 1) if layer % 4]
        changes["linear_attn_config"] = config.linear_attn_config.changed({"kda_layers": kda}, layers)
    return Work(config.replace(**changes), given.batch, given.seq_len, given.dtype, given.device)


def screen(work: Work, candidates: Sequence[Entry], keep: int = 1) -> tuple[dict[Entry, Step], dict[Entry, float]]:
    """The fastest `keep` of several entries, ready to go on, and how long the first call of each took.

    What cannot run here says so in one line and is left out.
    """
    ready: dict[Entry, Step] = {}
    first: dict[Entry, float] = {}
    took: dict[Entry, float] = {}
    for candidate in candidates:
        try:
            step = build_step(work, candidate)
            begin = time.perf_counter()
            step()
            first[candidate] = time.perf_counter() - begin
            step()
        except Exception as error:  # a peer may fail in any way; the others go on
            print(f"{candidate.name}: not here ({type(error).__name__}: {_line(error)})", file=sys.stderr, flush=True)
            continue
        ready[candidate], took[candidate] = step, float("inf")
    # In turn, so that a slow spell of the machine does not choose among them.
    for _ in range(_TRIALS if len(ready) > keep else 1):
        for candidate, step in ready.items():
            took[candidate] = min(took[candidate], _seconds(work, step))
    for candidate, seconds in took.items():
        print(f"{candidate.name}: {work.per_step / seconds:,.0f} tokens/s in trials", file=sys.stderr, flush=True)
    best = {candidate: ready[candidate] for candidate in sorted(took, key=took.__getitem__)[:keep]}
    ready.clear()
    gc.collect()  # compiled models hold themselves
    return best, first


def _seconds(work: Work, step: Step) -> float:
    synchronise(torch.device(work.device))
    begin = time.perf_counter()
    step()
    synchronise(torch.device(work.device))
    return time.perf_counter() - begin


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")[:120]


def field(work: Work, given: argparse.Namespace) -> tuple[dict[Entry, Step], dict[Entry, float]]:
    """All that take part: moonlet's as they are, of every kind of peer the fastest."""
    groups = [[e] for e in moonlet_entries(compiled=False)]
    groups += [transformers_entries(compiled=False)]
    groups += [dense_entries(optim, compiled=False) for optim in ("adamw", "muon")]
    if given.compile:
        if find_spec("moonlet.train.compile"):
            groups += [[e] for e in moonlet_entries(compiled=True)]
        groups += [transformers_entries(compiled=True), dense_entries("adamw", compiled=True)]
    steps: dict[Entry, Step] = {}
    first: dict[Entry, float] = {}
    for group in groups:
        several = given.peers if group[0].family == "transformers" and not group[0].compiled else 1
        found, took = screen(work, group[:1] if given.quick else group, several)
        steps, first = steps | found, first | took
    # With another optimizer the same way is the fastest: a second compilation would only confirm it.
    for e in [e for e in steps if e.family == "dense" and e.compiled]:
        found, took = screen(work, [entry("dense", **(e.given | {"optim": "muon"}))])
        steps, first = steps | found, first | took
    return steps, first


def in_turn(work: Work, steps: dict[Entry, Step], given: argparse.Namespace) -> Rates:
    """All in this process."""
    device = torch.device(work.device)

    def waiting(step: Step) -> float:
        loss = step()
        synchronise(device)
        return loss

    calls = {e: partial(waiting, step) for e, step in steps.items()}
    return speeds(calls, dict.fromkeys(steps, work.per_step), given.rounds, given.steps, warm=1)


def plainly(entries: Sequence[Entry], given: argparse.Namespace) -> Rates:
    """Each in a process of its own, a process an entry in every round."""
    rates: Rates = {e: [] for e in entries}
    failed: set[Entry] = set()
    for number in range(given.rounds):
        for e in entries:
            if e in failed:
                continue
            command = [sys.executable, __file__, *given.arguments, "--one", json.dumps([e.family, e.given])]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            try:
                rates[e].append(float(done.stdout.strip().splitlines()[-1]))
            except (IndexError, ValueError):
                last = done.stderr.strip().splitlines()[-1:] or ["no message"]
                print(f"{e.name}: its process failed ({last[0][:120]})", file=sys.stderr, flush=True)
                failed.add(e)
        print(f"started plainly: round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)
    return {e: found for e, found in rates.items() if e not in failed}


def one(given: argparse.Namespace) -> None:
    """Such a process: prints its tokens a second."""
    family, settings = json.loads(given.one)
    if family == "moonlet":
        keep_freed_memory()
    work = work_of(given)
    step = build_step(work, entry(family, **settings))
    for _ in range(2 if given.quick else 3):
        step()
    print(given.steps * work.per_step / sum(_seconds(work, step) for _ in range(given.steps)))


def report(work: Work, rates: Rates, peak: float) -> str:
    """A markdown table: rates, ratios to the best of each kind of peer, share of the peak."""
    kinds = {
        "x transformers, eager": lambda e: e.family == "transformers" and not e.compiled,
        "x transformers, compiled": lambda e: e.family == "transformers" and e.compiled,
        "x dense GPT": lambda e: e.family == "dense",
    }
    peers = {name: _best(rates, chosen) for name, chosen in kinds.items()}
    peers = {name: peer for name, peer in peers.items() if peer is not None}
    rows = [["", "tokens/s, median", "min - max", *peers, "share of the peak"]]
    for e, found in sorted(rates.items(), key=lambda item: -median(item[1])):
        cells = []
        for peer in peers.values():
            middle, low, high = ratios(found, rates[peer])
            cells.append("1" if peer is e else f"{middle:.2f} ({low:.2f} - {high:.2f})")
        every, needed = (
            100 * median(found) * e.training_flops(work, context) / peak
            for context in (work.seq_len, (work.seq_len + 1) // 2)
        )
        rows.append([e.name, f"{median(found):,.0f}", f"{min(found):,.0f} - {max(found):,.0f}", *cells,
                     f"{every:.0f}% ({needed:.0f}%)"])  # fmt: skip
    return table(rows)


def _best(rates: Rates, chosen: Any) -> Entry | None:
    found = [e for e in rates if chosen(e)]
    return max(found, key=lambda e: median(rates[e])) if found else None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="k2-nano")
    parser.add_argument("--layers", type=int, help="of the model; else 6 of k2-nano, and of others the preset's")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps of an entry in a round")
    parser.add_argument("--peers", type=int, default=1, help="how many of transformers' eager settings are kept")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "bfloat16", "float32"), help="moonlet's and dense's"
    )
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="compiled entries too")
    parser.add_argument("--plain", action=argparse.BooleanOptionalAction, default=True, help="the second table too")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--quick", action="store_true", help="a trial of seconds; its numbers mean nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    given.arguments = list(sys.argv[1:] if arguments is None else arguments)
    if given.layers is None:
        given.layers = 6 if given.preset == "k2-nano" else 0
    if given.quick:
        given.batch, given.seq_len, given.rounds, given.steps, given.compile = 2, 16, 2, 1, False
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Try, time, print."""
    given = parse(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.one:
        one(given)
        return
    keep_freed_memory()
    work = work_of(given)
    rates = measure_rates(torch.device(work.device), 0.2 if given.quick else 3.0)
    peak = (rates.bf16 if work.compute_dtype == torch.bfloat16 else None) or rates.fp32
    steps, first = field(work, given)
    print(f"{given.preset}, {work.config.num_hidden_layers} layers, vocabulary {work.config.vocab_size:,}, "
          f"{work.batch} x {work.seq_len} tokens a step, {given.rounds} rounds of {given.steps} steps in turn\n"
          f"{machine()}; moonlet and the dense GPT compute in {str(work.compute_dtype)[6:]}; large products reach "
          f"{peak / 1e9:,.0f} GFLOP/s\n")  # fmt: skip
    found = {"the same allocator for all": in_turn(work, steps, given)}
    print(f"The same allocator for all:\n\n{report(work, found['the same allocator for all'], peak)}\n", flush=True)
    compiling = [f"{e.name} {seconds:.0f} s" for e, seconds in first.items() if e.compiled]
    if compiling:
        print(f"First step, compilation included: {'; '.join(compiling)}\n", flush=True)
    entries = list(steps)
    steps.clear()
    gc.collect()
    if given.plain:
        found["started plainly"] = plainly(entries, given)
        print(f"Started plainly, each in a process of its own:\n\n{report(work, found['started plainly'], peak)}")
    if given.json:
        facts = {"machine": machine(), "preset": given.preset, "layers": work.config.num_hidden_layers,
                 "batch": work.batch, "seq_len": work.seq_len, "peak": peak}  # fmt: skip
        numbers = {how: {e.name: values for e, values in table.items()} for how, table in found.items()}
        given.json.write_text(json.dumps({**facts, "tokens_per_s": numbers}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
