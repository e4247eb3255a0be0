"""The gated delta rule, forward and backward: moonlet against transformers' PyTorch paths and against attention.

    python benchmarks/delta.py [--lengths 1024 4096 16384] [--rounds 3] [--heads 8] [--width 64] [--batch 1]

One layer's op alone on random inputs of the width: moonlet's chunks and its recurrence, transformers'
`chunk_kimi_delta_attention` and `recurrent_kimi_delta_attention` (what it runs without flash-linear-attention), and
causal `scaled_dot_product_attention` in fp32 and bf16. Rounds alternate between the entries, because a shared machine
swings; medians and the spread (min to max) are printed. An entry too slow for a length is timed at a shorter one, and
the table says which. Rounds run with the allocator told to keep freed memory. Peak memory is what a process that runs
one entry alone grows by during one step, inputs not counted, with the allocator as it comes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from torch import Tensor  # noqa: E402

from moonlet.ops.allocator import keep_freed_memory  # noqa: E402
from moonlet.ops.delta import reference  # noqa: E402
from moonlet.ops.delta_chunked import chunked  # noqa: E402

OURS, THEIRS, THEIR_RECURRENCE = "moonlet, chunked", "transformers, chunk", "transformers, recurrent"
OUR_RECURRENCE, NARROW_ATTENTION = "moonlet, recurrence", "SDPA attention, bf16"

Step = Callable[[], object]


def delta_inputs(args: argparse.Namespace, T: int) -> list[Tensor]:
    """q, k, v [B, T, H, K], g likewise and beta [B, T, H], as a fresh layer has them."""
    gen = torch.Generator().manual_seed(T)
    shape = (args.batch, T, args.heads, args.width)
    q, k, v = (torch.randn(shape, generator=gen) for _ in range(3))
    g = -args.decay * torch.rand(shape, generator=gen)
    beta = torch.rand(shape[:3], generator=gen)
    return [x.requires_grad_() for x in (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, g, beta)]


def forward_and_backward(inputs: list[Tensor], rule: Callable[[], Tensor]) -> Step:
    # The output of each has the shape of its values.
    weight = torch.randn(inputs[2].shape, generator=torch.Generator().manual_seed(0)).to(inputs[2].dtype)
    return lambda: torch.autograd.grad(rule(), inputs, weight)


def delta(args: argparse.Namespace, T: int, rule: Callable[..., tuple[Tensor, Tensor]], **more: object) -> Step:
    inputs = delta_inputs(args, T)
    return forward_and_backward(inputs, lambda: rule(*inputs, **more)[0])


def theirs(args: argparse.Namespace, T: int, name: str) -> Step:
    from transformers.models.kimi_linear import modeling_kimi_linear

    return delta(args, T, getattr(modeling_kimi_linear, name), initial_state=None, output_final_state=False)


def attention(args: argparse.Namespace, T: int, dtype: torch.dtype) -> Step:
    gen = torch.Generator().manual_seed(T)
    shape = (args.batch, T, args.heads, args.width)
    inputs = [torch.randn(shape, generator=gen).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    return forward_and_backward(inputs, lambda: F.scaled_dot_product_attention(*inputs, is_causal=True))


ENTRIES: dict[str, Callable[[argparse.Namespace, int], Step]] = {
    OURS: lambda args, T: delta(args, T, chunked, scale=args.width**-0.5),
    OUR_RECURRENCE: lambda args, T: delta(args, T, reference, scale=args.width**-0.5),
    THEIRS: lambda args, T: theirs(args, T, "chunk_kimi_delta_attention"),
    THEIR_RECURRENCE: lambda args, T: theirs(args, T, "recurrent_kimi_delta_attention"),
    "SDPA attention, fp32": lambda args, T: attention(args, T, torch.float32),
    NARROW_ATTENTION: lambda args, T: attention(args, T, torch.bfloat16),
}


def length_of(name: str, T: int, args: argparse.Namespace) -> int:
    """The length at which an entry stands for T."""
    limits = {OUR_RECURRENCE: args.recurrence_up_to, THEIR_RECURRENCE: args.recurrence_up_to, THEIRS: args.peers_up_to}
    return min(T, limits.get(name, T))


def measure(args: argparse.Namespace, lengths: dict[str, int]) -> dict[str, list[float]]:
    """Tokens a second of each entry at its length, alternating."""
    steps = {name: ENTRIES[name](args, T) for name, T in lengths.items()}
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(args.rounds):
        for name, step in steps.items():
            begin, runs = time.perf_counter(), 0
            while runs == 0 or time.perf_counter() - begin < args.seconds:
                step()
                runs += 1
            rates[name].append(args.batch * lengths[name] * runs / (time.perf_counter() - begin))
    return rates


def resident(peak: bool) -> int:
    """Bytes this process holds, or held at most since `forget_peak`; without /proc, at most since it began."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        (found,) = (line.split()[1] for line in lines if line.startswith("VmHWM:" if peak else "VmRSS:"))
        return int(found) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Begin a new peak, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory(name: str, T: int, arguments: list[str]) -> int:
    """Bytes that a forward and backward need beyond the inputs, in a process of its own."""
    command = [sys.executable, __file__, *arguments, "--memory-of", name, str(T)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def memory_here(args: argparse.Namespace, name: str, T: int) -> None:
    """Print what one step grew this process by. A short one first: libraries load, threads start."""
    ENTRIES[name](args, min(T, 64))()
    step = ENTRIES[name](args, T)
    gc.collect()
    forget_peak()
    before = resident(peak=False)
    step()
    print(max(0, resident(peak=True) - before))


def rows(args: argparse.Namespace, T: int, arguments: list[str]) -> Table:
    lengths = {name: length_of(name, T, args) for name in ENTRIES}
    rates = measure(args, lengths)
    table = Table(
        title=f"{args.batch} x {T:,} tokens, {args.heads} heads of {args.width}, {torch.get_num_threads()} threads"
    )
    for column in ("", "tokens", "tokens/s (median)", "min - max", "ours / it", "peak memory"):
        table.add_column(column, justify="left" if not column else "right")
    median = {name: statistics.median(r) for name, r in rates.items()}
    for name, r in rates.items():
        note = f"{lengths[name]:,}" + (" (shorter: slow)" if lengths[name] < T else "")
        spread = f"{min(r):,.0f} - {max(r):,.0f}"
        measured = not args.quick or name == OURS
        grown = f"{memory(name, lengths[name], arguments) / 2**20:,.0f} MiB" if measured else "not measured"
        table.add_row(name, note, f"{median[name]:,.0f}", spread, f"{median[OURS] / median[name]:.2f}", grown)
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long an entry runs in a round, at least once")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--decay", type=float, default=0.1, help="g is drawn from minus this to 0")
    parser.add_argument("--recurrence-up-to", type=int, default=1024, help="longest length for the two recurrences")
    parser.add_argument("--peers-up-to", type=int, default=4096, help="longest length for transformers' chunk path")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny, one round, memory of ours alone")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser.parse_args(arguments)
    if args.quick:
        args.lengths, args.rounds, args.seconds, args.heads, args.width = [128], 1, 0.0, 2, 16
        args.recurrence_up_to = 64
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory_of:
        memory_here(args, args.memory_of[0], int(args.memory_of[1]))
        return
    keep_freed_memory()
    for T in args.lengths:
        Console(width=120).print(rows(args, T, arguments))


if __name__ == "__main__":
    main()
