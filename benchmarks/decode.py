"""Cached generation: moonlet against transformers' DeepseekV3ForCausalLM, the same weights, alternating in one run.

    python benchmarks/decode.py                  # k2-nano, one thread, batch 1 and 16
    python benchmarks/decode.py --threads 2 --rounds 15

Every setting of transformers (fp32 and bf16, attention eager and sdpa, all implementations of the experts) is timed
first, and its fastest go into the rounds, as a bare loop over forward with its cache and as `generate`. moonlet runs in
fp32, as the same bare loop (`Step`) and as `complete`, which also draws, decodes bytes and looks for ends; in batches
exact (each row as it would be alone, the default) and with rows sharing their products. All are greedy. The allocator
is told to keep freed memory, for both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils.logging import disable_progress_bar

from moonlet.generate import SamplingParams, Step, complete, lay_out
from moonlet.hub.write import write_model
from moonlet.model.init import build
from moonlet.model.model import CausalLM
from moonlet.ops.allocator import keep_freed_memory
from moonlet.text import ByteTokenizer

PROMPT = "Once upon a time there was"
BYTES = ByteTokenizer()
SETTINGS = list(product(("float32", "bfloat16"), ("eager", "sdpa"), ("eager", "batched_mm", "grouped_mm")))
FINALISTS = 3

Run = Callable[[int, int], float]
"""(batch, tokens) -> tokens a second, over all rows."""


def moonlet_loop(model: CausalLM, exact: bool) -> Run:
    """The decode step and argmax."""
    step = Step(model, exact)

    @torch.inference_mode()
    def run(batch: int, tokens: int) -> float:
        prompt = prompts(batch)
        cache = model.new_cache(batch, prompt.shape[1] + tokens)
        token = model.last_logits(prompt, cache).argmax(-1)
        start = time.perf_counter()
        for _ in range(tokens):
            token = step(token, cache).argmax(-1)
        return batch * tokens / (time.perf_counter() - start)

    return run


def moonlet_complete(model: CausalLM, exact: bool) -> Run:
    """What a user calls."""

    def run(batch: int, tokens: int) -> float:
        params = SamplingParams(max_new_tokens=tokens, temperature=0.0)
        start = time.perf_counter()
        done = complete(model, BYTES, [PROMPT] * batch, params, batch_size=batch, exact=exact)
        seconds = time.perf_counter() - start
        assert all(len(c.token_ids) == tokens for c in done)
        return batch * tokens / seconds

    return run


def transformers_loop(model: Any) -> Run:
    """Its forward with its cache, and argmax."""

    @torch.inference_mode()
    def run(batch: int, tokens: int) -> float:
        cache = DynamicCache(config=model.config)

        def next_token(ids: Tensor) -> Tensor:
            out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token: Tensor = out.logits[:, -1].argmax(-1, keepdim=True)
            return token

        token = next_token(prompts(batch))
        start = time.perf_counter()
        for _ in range(tokens):
            token = next_token(token)
        return batch * tokens / (time.perf_counter() - start)

    return run


def transformers_generate(model: Any) -> Run:
    """What its users call."""

    def run(batch: int, tokens: int) -> float:
        ids = prompts(batch)
        start = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=BYTES.pad_id,
        )
        return batch * tokens / (time.perf_counter() - start)

    return run


def prompts(batch: int) -> Tensor:
    """[batch, T], equal rows."""
    return torch.tensor([[BYTES.bos_id, *BYTES.encode(PROMPT)]] * batch)


def load_peers(folder: Path) -> dict[str, Any]:
    """transformers' model in every setting that it can be built in, by name."""
    peers = {}
    for dtype, attention, experts in SETTINGS:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation=attention, experts_implementation=experts
        )
        peers[f"{dtype}, {attention}, {experts}"] = model.train(False)
    return peers


@torch.inference_mode()
def check(model: CausalLM, peers: dict[str, Any]) -> None:
    """All compute the same logits; in bf16 a token may be routed otherwise, so they are only near."""
    want = model(prompts(1))[0, -1]
    for name, peer in peers.items():
        error = float((peer(prompts(1)).logits[0, -1].float() - want).norm() / want.norm())
        assert error < (1e-4 if name.startswith("float32") else 0.5), f"{name} computes something else: {error:.1e}"


def contest(batch: int, ours: dict[str, Run], peers: dict[str, Any], rounds: int, tokens: int) -> Table:
    """Time everything in turn, `rounds` times, and tabulate medians and spreads."""
    screened = {name: max(transformers_loop(m)(batch, tokens // 4) for _ in range(3)) for name, m in peers.items()}
    best = sorted(screened, key=lambda name: -screened[name])[:FINALISTS]
    runs = dict(ours)
    for name in best:
        runs[f"transformers loop ({name})"] = transformers_loop(peers[name])
        runs[f"transformers generate ({name})"] = transformers_generate(peers[name])
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(batch, 4)
    for _ in range(rounds):
        for name, run in runs.items():
            speeds[name].append(run(batch, tokens))
    peer_best = max((name for name in runs if name.startswith("transformers")), key=lambda n: median(speeds[n]))
    table = Table(title=f"batch {batch}, {rounds} alternating rounds of {tokens} tokens a row")
    for column in ("", "tokens/s, median", "range", "x best transformers", "range over rounds"):
        table.add_column(column, justify="left" if not column else "right")
    for name, found in speeds.items():
        # Rounds are compared with themselves: what else the machine does then strikes both.
        ratios = sorted(a / b for a, b in zip(found, speeds[peer_best], strict=True))
        table.add_row(
            name,
            f"{median(found):,.0f}",
            f"{min(found):,.0f} - {max(found):,.0f}",
            f"{median(ratios):.2f}",
            f"{ratios[0]:.2f} - {ratios[-1]:.2f}",
        )
    return table


def median(values: list[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def main() -> None:
    """Parse, build, contend, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="k2-nano")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    disable_progress_bar()
    console = Console(width=120)
    model = build(options.preset).eval()
    with torch.no_grad():
        model.lm_head.weight[BYTES.eos_id] = 0.0  # a logit of zero is never the largest: no text ends early
    with tempfile.TemporaryDirectory() as folder:
        write_model(model, Path(folder))
        peers = load_peers(Path(folder))
    check(model, peers)
    lay_out(model)
    console.print(f"{options.preset}, {options.threads} thread(s), torch {torch.__version__}")
    for batch in options.batch:
        ours = {}
        for exact in (True, False) if batch > 1 else (True,):
            kind = f"float32, {'exact' if exact else 'shared products'}" if batch > 1 else "float32"
            ours[f"moonlet loop ({kind})"] = moonlet_loop(model, exact)
            ours[f"moonlet complete ({kind})"] = moonlet_complete(model, exact)
        console.print(contest(batch, ours, peers, options.rounds, options.tokens))


if __name__ == "__main__":
    main()
