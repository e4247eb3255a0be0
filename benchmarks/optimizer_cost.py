"""What the optimizer costs: moonlet's Muon, torch.optim.Muon, and torch's fused AdamW, alternating in one run.

    python benchmarks/optimizer_cost.py [--rounds 7] [--threads 2] [--device cpu] [--preset k2-nano] [--layers 6]

All three move the same model (k2-nano with 6 layers: 173 matrices inside 71 parameters). torch.optim.Muon takes 2-D
parameters only and works through them one after the other: it gets every expert's gate, up and down as parameters of
their own, and fused AdamW the rest, as it does inside moonlet's Muon. A round times each once, because a shared
machine swings; medians and the spread (min to max) are printed. Then whole training steps of 32 x 256 tokens with
moonlet's Muon, timed outside and inside, give the optimizer's share of them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from moonlet.config import preset  # noqa: E402
from moonlet.config.sections import OptimSettings  # noqa: E402
from moonlet.model.init import build  # noqa: E402
from moonlet.model.model import CausalLM  # noqa: E402
from moonlet.ops.allocator import keep_freed_memory  # noqa: E402
from moonlet.optim.blocks import cuts, stack  # noqa: E402
from moonlet.optim.groups import parameter_groups  # noqa: E402
from moonlet.optim.optimizer import Optimizer, build_optimizer  # noqa: E402
from moonlet.train.precision import compute_dtype, pick_device  # noqa: E402
from moonlet.train.probe import synchronise  # noqa: E402
from moonlet.train.step import train_step  # noqa: E402

LR = 1e-3


def model_of(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> CausalLM:
    model = build(preset(args.preset).replace(num_hidden_layers=args.layers), device)
    model.compute_dtype = dtype
    return model


def with_gradients(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3


def moonlet_muon(model: CausalLM) -> Callable[[], None]:
    with_gradients(model)
    optimizer = build_optimizer(model, OptimSettings(kind="muon"))
    return lambda: optimizer.step(LR)


def torch_muon(model: CausalLM) -> Callable[[], None]:
    cut = cuts(model, per_head=False)
    groups = parameter_groups(model, OptimSettings())
    matrices = [
        nn.Parameter(matrix.detach().clone())
        for name, p in groups.pop("matrices").parameters.items()
        for blocks in cut.get(name, stack)(p)
        for matrix in blocks
    ]
    rest = [p for group in groups.values() for p in group.parameters.values()]
    for p in (*matrices, *rest):
        p.grad = torch.randn_like(p) * 1e-3
    muon = torch.optim.Muon(matrices, lr=LR, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> None:
        muon.step()
        adamw.step()

    return step


def torch_adamw(model: CausalLM) -> Callable[[], None]:
    with_gradients(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> None:
        optimizer.step()

    return step


def seconds(work: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    begin = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - begin


class Timed:
    """An optimizer that says how long its steps took."""

    def __init__(self, inner: Optimizer, device: torch.device) -> None:
        self.inner, self.device, self.times = inner, device, [0.0]
        self.zero_grad, self.state, self.load_state = inner.zero_grad, inner.state, inner.load_state

    def step(self, lr: float) -> None:
        self.times.append(seconds(lambda: self.inner.step(lr), self.device))


def training(args: argparse.Namespace, model: CausalLM, device: torch.device) -> tuple[list[float], list[float]]:
    """Seconds of whole steps, and of the optimizer in each."""
    size = (args.batch, args.seq_len + 1)
    ids = torch.randint(model.config.vocab_size, size, generator=torch.Generator().manual_seed(0)).to(device)
    batch: tuple[Tensor, Tensor] = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    optimizer = Timed(build_optimizer(model, OptimSettings(kind="muon")), device)

    def step() -> None:
        train_step(model, optimizer, [batch], count=1, lr=LR, grad_clip=1.0, bias_update_speed=1e-3)

    step()
    whole = [seconds(step, device) for _ in range(args.rounds)]
    return whole, optimizer.times[-args.rounds :]


def described(times: list[float]) -> tuple[str, str]:
    return f"{1e3 * statistics.median(times):,.1f}", f"{1e3 * min(times):,.1f} - {1e3 * max(times):,.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="k2-nano")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as torch chooses")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="compute dtype, which moonlet's Muon follows; auto: probed")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=256)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    device = pick_device(args.device)
    dtype = compute_dtype(args.dtype, device)
    entries = {
        "moonlet Muon": moonlet_muon(model_of(args, device, dtype)),
        "torch.optim.Muon, one matrix at a time": torch_muon(model_of(args, device, dtype)),
        "torch.optim.AdamW, fused": torch_adamw(model_of(args, device, dtype)),
    }
    times: dict[str, list[float]] = {name: [] for name in entries}
    for step in entries.values():
        step()
        step()
    for _ in range(args.rounds):
        for name, step in entries.items():
            times[name].append(seconds(step, device))
    where = f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    table = Table(title=f"{args.preset} with {args.layers} layers, {str(dtype).removeprefix('torch.')}, {where}")
    for column in ("", "ms a step (median)", "min - max", "times moonlet's", "median of the rounds' ratios"):
        table.add_column(column, justify="left" if not column else "right")
    ours = times["moonlet Muon"]
    for name, seen in times.items():
        ratio = statistics.median(seen) / statistics.median(ours)
        by_round = statistics.median(one / mine for one, mine in zip(seen, ours, strict=True))
        table.add_row(name, *described(seen), f"{ratio:.2f}", f"{by_round:.2f}")
    Console(width=130).print(table)
    whole, inside = training(args, model_of(args, device, dtype), device)
    share = [a / b for a, b in zip(inside, whole, strict=True)]
    print(
        f"\nA training step of {args.batch} x {args.seq_len} tokens: {described(whole)[0]} ms ({described(whole)[1]}), "
        f"of which Muon {described(inside)[0]} ms ({described(inside)[1]}): {statistics.median(share):.1%} "
        f"({min(share):.1%} - {max(share):.1%})"
    )


if __name__ == "__main__":
    main()
