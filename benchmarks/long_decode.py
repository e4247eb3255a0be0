"""What a token costs deep in a long text: linear-mini, with KDA in two layers of three, and its all-MLA twin.

    python benchmarks/long_decode.py                     # 1k, 16k and 64k tokens of context, one thread
    python benchmarks/long_decode.py --quick             # the same code in seconds
    python benchmarks/long_decode.py --lengths 1024 131000 --dtype bfloat16

The twin is the same configuration with `kda_layers = []`: latent attention in every layer, widths and experts the same.
Prefilling 64k tokens is not what is measured, so the caches are filled with random numbers of the size that a text
leaves there, and their lengths set. A step is then a real one: `moonlet.generate.Step`, the decode path of `generate`,
batch 1. It is followed by `steps` more, and the time of each is kept; models and lengths take turns, round by round, so
that what else the machine does strikes all alike.

Beside it, the mixing of one layer of each kind alone, through the same code on the same caches: its time must not grow
with the text for KDA, and does for MLA.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from moonlet.config import ModelConfig
from moonlet.config.linear_attention import LinearAttention
from moonlet.config.presets import preset
from moonlet.generate import Step, lay_out
from moonlet.model.cache import Cache, DeltaCache, LatentCache
from moonlet.model.init import build
from moonlet.model.model import CausalLM
from moonlet.ops.allocator import keep_freed_memory

# A context of 65,536 of linear-nano has no room for what is generated behind it.
_ROOM = 256


@dataclass
class Measured:
    """One model at one length: milliseconds of each step, and of one layer of each kind."""

    cache_bytes: int
    steps: list[float] = field(default_factory=list)
    layers: dict[str, list[float]] = field(default_factory=dict)


def twins(name: str, longest: int) -> dict[str, ModelConfig]:
    """The preset and its all-MLA twin, with positions for `longest` tokens."""
    config = preset(name)
    if config.linear_attn_config is None or not config.linear_attn_config.kda_layers:
        raise ValueError(f"{name} has no KDA layers; try linear-nano or linear-mini")
    config = config.replace(max_position_embeddings=max(config.max_position_embeddings, longest + _ROOM))
    return {name: config, "all-MLA twin": config.replace(linear_attn_config=LinearAttention(kda_layers=()))}


def filled(model: CausalLM, length: int, room: int) -> Cache:
    """A cache that holds `length` tokens of nothing in particular."""
    cache, generator = model.new_cache(1, length + room), torch.Generator().manual_seed(length)

    def noise(like: Tensor, size: float) -> None:
        like.copy_(size * torch.randn(like.shape, generator=generator))

    for layer in cache.layers:
        if isinstance(layer, DeltaCache):
            noise(layer.state, 0.1)
            noise(layer.inputs, 1.0)
        else:
            assert isinstance(layer, LatentCache)
            noise(layer.entries[:, :length], 1.0)  # normed latents
    cache.lengths.fill_(length)
    return cache


@torch.inference_mode()
def time_steps(step: Step, cache: Cache, length: int, count: int) -> list[float]:
    """Milliseconds of each of `count` steps behind `length` tokens."""
    cache.lengths.fill_(length)
    token, out = torch.tensor([17]), []
    for _ in range(count):
        begin = time.perf_counter()
        token = step(token, cache).argmax(-1)
        out.append(1000 * (time.perf_counter() - begin))
    return out


@torch.inference_mode()
def time_layers(step: Step, model: CausalLM, cache: Cache, length: int, count: int) -> dict[str, list[float]]:
    """Milliseconds that the first layer of each kind mixes for, `count` times."""
    cache.lengths.fill_(length)
    ends = step._ends(cache)
    x = torch.randn(1, model.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    out: dict[str, list[float]] = {}
    for i, layer in enumerate(step._layers):
        kind = "KDA" if model.config.is_kda(i) else "MLA"
        if kind in out:
            continue
        out[kind] = []
        for _ in range(count):
            begin = time.perf_counter()
            layer.mix(x, cache.layers[i], ends)
            out[kind].append(1000 * (time.perf_counter() - begin))
    return out


def contest(
    configs: dict[str, ModelConfig], lengths: Sequence[int], rounds: int, steps: int, dtype: torch.dtype
) -> dict[tuple[str, int], Measured]:
    """Every model at every length, in turn, `rounds` times; the first round warms up and is not kept."""
    models = {name: build(config).eval() for name, config in configs.items()}
    for model in models.values():
        model.to(dtype)
        lay_out(model)
    paths = {name: Step(model) for name, model in models.items()}
    caches = {(name, n): filled(models[name], n, _ROOM) for name in models for n in lengths}
    found = {place: Measured(cache.nbytes) for place, cache in caches.items()}
    for turn in range(rounds + 1):
        for (name, n), cache in caches.items():
            spent = time_steps(paths[name], cache, n, steps)
            layers = time_layers(paths[name], models[name], cache, n, steps)
            if turn:
                found[name, n].steps += spent
                for kind, times in layers.items():
                    found[name, n].layers.setdefault(kind, []).extend(times)
    return found


def cache_bytes(config: ModelConfig, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of a cache that do not depend on the length, and bytes of each token."""
    model = build(config, "meta")
    model.compute_dtype = dtype
    one, two = (model.new_cache(1, n).nbytes for n in (1, 2))
    return 2 * one - two, two - one


def report(
    found: dict[tuple[str, int], Measured], configs: dict[str, ModelConfig], lengths: Sequence[int], dtype: torch.dtype
) -> str:
    """Two tables: whole steps and memory, and single layers."""
    rows = [["", "context", "ms a token", "middle half", "tokens/s", "cache", "x at the shortest"]]
    for name in configs:
        shortest = statistics.median(found[name, lengths[0]].steps)
        for n in lengths:
            m = found[name, n]
            middle = statistics.median(m.steps)
            used = m.cache_bytes - _ROOM * cache_bytes(configs[name], dtype)[1]
            rows.append(
                [name, f"{n:,}", f"{middle:.2f}", _quartiles(m.steps), f"{1000 / middle:.0f}", _size(used),
                 f"{middle / shortest:.2f}"]
            )  # fmt: skip
    kinds = [["one layer's mixing", *(f"{n:,} tokens, ms" for n in lengths), "longest / shortest"]]
    for name in configs:
        for kind in found[name, lengths[0]].layers:
            columns = [found[name, n].layers[kind] for n in lengths]
            cells = [f"{statistics.median(c):.3f} ({_quartiles(c, 3)})" for c in columns]
            ratio = statistics.median(columns[-1]) / statistics.median(columns[0])
            kinds.append([f"{kind}, {name}", *cells, f"{ratio:.2f}"])
    sizes = []
    for name, config in configs.items():
        constant, each = cache_bytes(config, dtype)
        kda = sum(config.is_kda(i) for i in range(config.num_hidden_layers))
        sizes.append(
            f"{name}: {kda} KDA and {config.num_hidden_layers - kda} MLA layers; a cache of {constant:,} bytes and "
            f"{each:,} for each token."
        )
    return "\n\n".join((_markdown(rows), _markdown(kinds), "\n".join(f"- {line}" for line in sizes)))


def _quartiles(values: Sequence[float], digits: int = 2) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.{digits}f} - {high:.{digits}f}"


def _size(count: int) -> str:
    return f"{count / 2**20:.2f} MiB"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="linear-mini", help="with KDA layers")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 16384, 65536], help="tokens of context")
    parser.add_argument("--rounds", type=int, default=12, help="turns of every model at every length")
    parser.add_argument("--steps", type=int, default=16, help="steps a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of weights and cache")
    parser.add_argument("--quick", action="store_true", help="a trial of seconds; its numbers mean nothing")
    given = parser.parse_args(arguments)
    if given.quick:
        given.preset, given.lengths, given.rounds, given.steps = "linear-nano", [16, 64], 2, 3
    if not 1 <= given.steps <= _ROOM or given.rounds < 1 or min(given.lengths) < 1:
        raise SystemExit(f"--steps lies in 1..{_ROOM}, --rounds and --lengths are at least 1")
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    lengths, dtype = sorted(set(given.lengths)), getattr(torch, given.dtype)
    configs = twins(given.preset, lengths[-1])
    found = contest(configs, lengths, given.rounds, given.steps, dtype)
    print(
        f"{given.preset}, {given.dtype}, {given.threads} thread(s), batch 1, torch {torch.__version__}; medians of "
        f"{given.rounds} alternating rounds of {given.steps} tokens\n"
    )
    print(report(found, configs, lengths, dtype))


if __name__ == "__main__":
    main()
