"""Training speed: moonlet against transformers' model of the same family, the same weights, alternating in one run.

    python benchmarks/train.py [--rounds 5] [--batch 16] [--seq-len 256] [--preset k2-nano]     # or linear-nano

Every setting of transformers (fp32 and bf16, its attention and expert implementations) is timed once, and its fastest
go into the rounds. An entry takes whole training steps (forward, backward, clipping, AdamW) on the same tokens. Rounds
alternate between the entries, because a shared machine swings; medians and the spread (min to max) are printed. All run
with the allocator told to keep freed memory, then everything runs again with the allocator as it comes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from moonlet.config import preset  # noqa: E402
from moonlet.config.sections import OptimSettings  # noqa: E402
from moonlet.hub.write import write_model  # noqa: E402
from moonlet.model.init import build  # noqa: E402
from moonlet.ops.allocator import keep_freed_memory  # noqa: E402
from moonlet.optim.optimizer import build_optimizer  # noqa: E402
from moonlet.train.precision import compute_dtype  # noqa: E402
from moonlet.train.step import train_step  # noqa: E402

Step = Callable[[], float]


def moonlet_step(args: argparse.Namespace, tokens: torch.Tensor) -> Step:
    model = build(args.preset)
    model.compute_dtype = compute_dtype("auto", torch.device("cpu"))
    optimizer = build_optimizer(model, OptimSettings(kind="adamw"))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> float:
        return train_step(
            model, optimizer, [(inputs, targets)], count=1, lr=1e-4, grad_clip=1.0, bias_update_speed=1e-3
        ).loss

    return step


def transformers_step(
    folder: str, tokens: torch.Tensor, dtype: torch.dtype, attention: str, experts: str, compiled: bool = False
) -> Step:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, experts_implementation=experts
    ).train()
    if compiled:
        model.forward = torch.compile(model.forward)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> float:
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def entries(args: argparse.Namespace) -> dict[str, Step]:
    config = preset(args.preset)
    tokens = torch.randint(
        0, config.vocab_size, (args.batch, args.seq_len + 1), generator=torch.Generator().manual_seed(0)
    )
    found: dict[str, Step] = {"moonlet": moonlet_step(args, tokens)}
    folder = tempfile.mkdtemp(prefix="moonlet-bench-")
    write_model(build(args.preset), Path(folder), {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2})
    kinds = ((torch.float32, "fp32"), (torch.bfloat16, "bf16"))
    first: dict[str, float] = {}
    candidates: dict[str, Step] = {}
    # Its third expert implementation, batched_mm, copies an expert's weights for every token: gigabytes at this size.
    choices = itertools.product(kinds, ("eager", "sdpa"), ("eager", "grouped_mm"))
    for (dtype, name), attention, experts in choices:
        label = f"transformers {name}, {attention} attention, {experts} experts"
        try:
            step = transformers_step(folder, tokens, dtype, attention, experts)
            step()
            begin = time.perf_counter()
            step()
            first[label], candidates[label] = time.perf_counter() - begin, step
        except Exception as error:
            print(f"{label}: not here ({type(error).__name__})", file=sys.stderr)
    for label in sorted(first, key=first.__getitem__)[: args.peers]:
        found[label] = candidates[label]
    if args.compile:
        label = "transformers bf16, sdpa attention, grouped_mm experts, torch.compile"
        found[label] = transformers_step(folder, tokens, torch.bfloat16, "sdpa", "grouped_mm", compiled=True)
        found[label]()
    return found


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    steps = entries(args)
    seen = args.batch * args.seq_len
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(args.rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            for _ in range(args.steps):
                step()
            rates[name].append(args.steps * seen / (time.perf_counter() - begin))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="k2-nano")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--peers", type=int, default=3, help="how many of transformers' settings go into the rounds")
    parser.add_argument("--compile", action="store_true", help="also time transformers under torch.compile (a minute)")
    parser.add_argument("--plain-allocator", action="store_true", help="do not keep freed memory (nobody's tuning)")
    args = parser.parse_args()
    if not args.plain_allocator:
        keep_freed_memory()
    rates = measure(args)
    table = Table(
        title=f"{args.preset}, {args.batch} x {args.seq_len} tokens a step, {torch.get_num_threads()} threads"
    )
    for column in ("", "tokens/s (median)", "min - max", "ratio to transformers' best"):
        table.add_column(column, justify="left" if not column else "right")
    best = max(statistics.median(r) for name, r in rates.items() if name != "moonlet")
    for name, r in sorted(rates.items(), key=lambda item: -statistics.median(item[1])):
        m = statistics.median(r)
        table.add_row(name, f"{m:,.0f}", f"{min(r):,.0f} - {max(r):,.0f}", f"{m / best:.2f}")
    Console(width=130).print(table)
    if not args.plain_allocator:
        print("\nThe same with the C library's allocator as it comes:", flush=True)
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--plain-allocator"], check=True)


if __name__ == "__main__":
    main()
