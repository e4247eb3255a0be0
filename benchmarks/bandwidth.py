"""How fast this machine reads memory, and how much a decode step has to read: the bound on tokens a second.

    bound = rows * bandwidth / bytes        bytes: every matrix that a step of these rows multiplies with, once

One token meets A of E experts; `rows` tokens that choose independently meet E (1 - (1 - A/E)^rows) of them on average.
What a step reads of the cache is left out: it is small beside the weights, and left out it makes the bound higher.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from moonlet.config import ModelConfig
from moonlet.model.count import count

# Far beyond any cache, of which even a small part would flatter the figure.
_BYTES = 512 * 2**20


def read_bandwidth(threads: int, seconds: float = 1.5, size: int = _BYTES) -> float:
    """Bytes a second of the fastest of several ways to read `size` bytes once, none of which writes."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        values = torch.ones(size // 4)
        row, table = torch.ones(1024), values.view(-1, 1024)
        half = values.view(torch.bfloat16).view(-1, 4096)
        short = torch.ones(1, 4096, dtype=torch.bfloat16)
        ways: list[Callable[[], object]] = [
            lambda: values.sum(),
            lambda: values.amax(),
            lambda: torch.mv(table, row),
            lambda: torch.nn.functional.linear(short, half),
        ]
        return size / min(_best(way, seconds / len(ways)) for way in ways)
    finally:
        torch.set_num_threads(before)


def _best(way: Callable[[], object], seconds: float) -> float:
    best, begin = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        way()
        best = min(best, time.perf_counter() - start)
    return best


def step_bytes(config: ModelConfig, rows: int, width: int) -> int:
    """Bytes of weights that a decode step of `rows` texts reads, `width` bytes a weight, the head's included.

    Of the embedding it reads a row a text.
    """
    sizes = count(config)
    met = sizes.routed_experts
    if config.n_routed_experts:
        met = round(met * (1 - (1 - config.num_experts_per_tok / config.n_routed_experts) ** rows))
    always = sizes.active - sizes.routed_experts_active
    head = sizes.head or sizes.embedding
    return width * (always + met + head + rows * config.hidden_size)


def bound(config: ModelConfig, rows: int, width: int, bandwidth: float) -> float:
    """Tokens a second, over all rows, that reading the weights allows."""
    return rows * bandwidth / step_bytes(config, rows, width)
