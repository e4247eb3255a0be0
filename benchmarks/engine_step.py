"""The engine's decode steps side by side, of the same texts in the same paged cache, taking turns.

    python benchmarks/engine_step.py                      # k2-nano and linear-nano, 1 and 16 texts, compiled too
    python benchmarks/engine_step.py --device cuda --dtype bfloat16
    python benchmarks/engine_step.py --quick

| entry | what it is |
|---|---|
| by row | PyTorch's step for one text after the other, each gathered from its blocks |
| static | the step of static shapes, as it is written |
| compiled | the same after torch.compile, on a GPU recorded as well; `cold` is what its first call took |
| native | the call in C++, on a CPU |

A step is a token for each of the texts. Figures are medians of rounds, ratios are taken round by round, and what
follows them in brackets is the lowest and the highest. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from small_runs import table
from steps import machine, ratios, speeds

from moonlet.config import preset
from moonlet.generate.native_step import NativeStep, why_not_native
from moonlet.generate.static_step import StaticStep
from moonlet.generate.step import Step
from moonlet.model.init import build
from moonlet.model.model import CausalLM
from moonlet.model.paged_cache import PagedCache, blocks_for
from moonlet.train.compile import why_not

BLOCK = 32
PEER = "by row"


class Texts:
    """As many texts as a cache has room for, each of the same length, and their next tokens."""

    def __init__(self, model: CausalLM, texts: int, length: int, more: int) -> None:
        self.model, self.texts, self.length = model, list(range(texts)), length
        most = blocks_for(length + more, BLOCK)
        self.cache = PagedCache(model, texts, texts * most, BLOCK, most, 0)
        self.cache.tables.copy_(torch.randperm(texts * most).view(texts, most))
        self.room = most * BLOCK
        self.at = length

    def next(self) -> int:
        """The position of the next tokens; from the beginning again where the cache ends. What is there is noise."""
        self.at = self.length if self.at + 1 >= self.room else self.at + 1
        return self.at


def done(logits: torch.Tensor) -> None:
    """Wait for a step's end, as drawing does."""
    logits[0, 0].item()


def entries(model: CausalLM, texts: int, length: int, more: int, compile: bool) -> dict[str, Callable[[], object]]:
    """Each way to take one more token in for every text; compiled last, after a line on how long that took."""
    step, rows = Step(model), Texts(model, texts, length, more)

    def by_row() -> None:
        at, logits = rows.next(), []
        for text in rows.texts:
            cache = rows.cache.contiguous(text, at, 1)
            logits.append(step(torch.tensor([text + 1], device=model.device), cache))
            rows.cache.put_back(cache, text, at, at + 1)
        done(torch.cat(logits))

    found: dict[str, Callable[[], object]] = {PEER: by_row}

    def static(backend: str | None) -> Callable[[], object]:
        own = Texts(model, texts, length, more)
        made = StaticStep(model, own.cache, backend)

        def run() -> None:
            at = own.next()
            done(made([text + 1 for text in own.texts], [at] * texts, own.texts))

        return run

    found["static"] = static(None)
    if not why_not_native(model):
        kept, fast = Texts(model, texts, length, more), NativeStep(model)

        def native() -> None:
            at = kept.next()
            done(fast.feed([text + 1 for text in kept.texts], [at] * texts, kept.texts, kept.texts, kept.cache))

        found["native"] = native
    if compile:
        begin = time.perf_counter()
        found["compiled"] = static("inductor")
        found["compiled"]()
        print(f"compiled: cold, the first call took {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    return found


def measure(name: str, args: argparse.Namespace) -> list[list[str]]:
    """The rows of a table about one model."""
    model = build(preset(name), seed=0).eval().to(args.device, getattr(torch, args.dtype))
    out = []
    for texts in args.texts:
        steps = entries(model, texts, args.length, args.room, args.compile)
        found = speeds(steps, dict.fromkeys(steps, 1), args.rounds, args.each)
        for entry in steps:
            middle, low, high = ratios(found[entry], found[PEER])
            ratio = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
            out.append([name, str(texts), entry, f"{1000 / median(found[entry]):.2f}", ratio])
    return out


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="The engine's decode steps side by side.")
    parser.add_argument("--models", nargs="+", default=["k2-nano", "linear-nano"], help="presets")
    parser.add_argument("--texts", nargs="+", type=int, default=[1, 16], help="texts decoded together")
    parser.add_argument("--length", type=int, default=256, help="tokens that each text holds at first")
    parser.add_argument("--room", type=int, default=192, help="and for how many more it has room")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--each", type=int, default=8, help="steps a round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave that entry out")
    parser.add_argument("--quick", action="store_true", help="one model, few rounds, nothing compiled: does it run?")
    args = parser.parse_args(argv)
    if args.quick:
        args.models, args.texts, args.rounds, args.each, args.compile = ["k2-nano"], [2], 2, 1, False
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    problem = why_not(torch.device(args.device)) if args.compile else "not asked for"
    if problem:
        print(f"compiled is left out: {problem}", file=sys.stderr)
        args.compile = False
    with tempfile.TemporaryDirectory() as folder:
        # Cold means cold: what was compiled before is not taken.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        rows = [row for name in args.models for row in measure(name, args)]
    print(f"{machine()}; {args.dtype}, {args.length} tokens a text\n")
    print(table([["model", "texts", "step", "ms", f"speed, {PEER} = 1"], *rows]))


if __name__ == "__main__":
    main()
