"""Where a training step's time goes, found out in the middle of a run without changing it.

Of the steps that follow, some are left alone until kernels are built and memory has grown, some are timed as they
are, some run under torch.profiler in the ranges of train/ranges.py, and on a CPU one more has its memory followed.
After the last of them RUN/profile is written and training goes on with the same bits as if nobody had looked:

    profile.md   a row for each part of the step, and one for each of the operators that took most
    trace.json   the profiled steps, for chrome://tracing or https://ui.perfetto.dev
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from moonlet.config import Recipe
from moonlet.model.count import shapes
from moonlet.model.flops import TRAINING, flops_per_token
from moonlet.text.atomic import atomic_path, atomic_write
from moonlet.train.estimate import muon_flops
from moonlet.train.footprint import resident_peak
from moonlet.train.loop import Trainer
from moonlet.train.probe import measure_rates, synchronise, try_allocator
from moonlet.train.profile_page import Profile, markdown
from moonlet.train.ranges import (
    DENSE,
    EXPERTS,
    HEAD,
    KDA_CONVOLUTION,
    KDA_DELTA,
    KDA_PROJECTIONS,
    NEWTON_SCHULZ,
    ROUTER,
    SHARED,
    STEP,
    marked,
)
from moonlet.train.trace import middle, read_trace

# Steps of each kind, in this order.
KINDS = {"warm": 10, "plain": 5, "traced": 3, "memory": 1}
FEWEST = len(KINDS)
_PROBE = 1.0  # seconds the machine is measured for


def check_steps(steps: int | None) -> None:
    """Refuse to profile a run of fewer steps than one of each kind; None: not fixed yet."""
    if steps is not None and steps < FEWEST:
        raise ValueError(
            f"{steps} steps are left and --profile needs {FEWEST} at least ({sum(KINDS.values())} to do it well); "
            f"make train.steps larger"
        )


def plan(left: int | None) -> list[str]:
    """The kind of each of the next steps, where `left` are left to train; None: not fixed yet.

    Raises:
        ValueError: as `check_steps`.
    """
    check_steps(left)
    whole = sum(KINDS.values())
    left = whole if left is None else min(left, whole)
    counts = {kind: max(1, n * left // whole) for kind, n in KINDS.items()}
    # What is cold tells least, so warming up takes all that the others leave.
    counts["warm"] = left - sum(n for kind, n in counts.items() if kind != "warm")
    return [kind for kind, n in counts.items() for _ in range(n)]


class Profiler:
    """Watches the steps of a trainer, from when it is made; a context manager that leaves nothing behind.

    Args:
        folder: where the two files go; made when they are written.
        show: given the profile once it is written.
        message: told in one line when there is none.

    Raises:
        ValueError: too few steps are left.
    """

    def __init__(
        self, trainer: Trainer, folder: Path, show: Callable[[Profile], None], message: Callable[[str], None]
    ) -> None:
        self.trainer, self.folder, self.show, self.message = trainer, folder, show, message
        self.device = trainer.model.device
        total = trainer.progress.total
        self._kinds = plan(None if total is None else total - trainer.progress.step)
        self._plain: list[float] = []
        self._memory: int | None = None
        self._open = ExitStack()
        self._profile: profile | None = None
        self._first = 0  # step that was traced first

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        if self._kinds:
            self.message("the run stopped before its profile was whole; none was written")

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around each step of the loop."""
        if not self._kinds:
            yield
            return
        kind, after = self._kinds[0], self._kinds[1:]
        around = {"warm": _as_it_is, "plain": self._timed, "traced": self._traced, "memory": self._followed}[kind]
        try:
            with around():
                yield
            if kind == "traced" and kind not in after:
                self._open.close()
        except BaseException:
            self._open.close()
            raise
        self._kinds = after
        if not after:
            self._finish()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        cuda = self.device.type == "cuda"
        synchronise(self.device)
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        begin = time.perf_counter()
        yield
        synchronise(self.device)
        self._plain.append(time.perf_counter() - begin)
        if cuda:
            self._memory = max(self._memory or 0, torch.cuda.max_memory_allocated(self.device))

    @contextmanager
    def _traced(self) -> Iterator[None]:
        if self._profile is None:
            self._first = self.trainer.progress.step + 1
            self._open.enter_context(
                marked(self.trainer.model, type(self.trainer.loader), self.trainer.compiler is not None)
            )
            self._profile = self._open.enter_context(profile(activities=_activities(self.device)))
        synchronise(self.device)
        with record_function(STEP):
            yield
            # A GPU's step ends when its kernels do.
            synchronise(self.device)

    @contextmanager
    def _followed(self) -> Iterator[None]:
        """On a CPU torch keeps no account of its memory but in a trace."""
        if self.device.type != "cpu":
            yield
            return
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as followed:
            yield
        with TemporaryDirectory() as folder:
            file = Path(folder) / "memory.json"
            followed.export_chrome_trace(str(file))
            self._memory = most_held(json.loads(file.read_text(encoding="utf-8"))["traceEvents"])

    def _finish(self) -> None:
        assert self._profile is not None, "one step at least is traced"
        done, self._profile = self._profile, None
        try:
            trace = self.folder / "trace.json"
            with atomic_path(trace) as temporary:
                done.export_chrome_trace(str(temporary))
            found = self._put_together(trace)
            atomic_write(self.folder / "profile.md", markdown(found))
        except OSError as error:
            self.message(f"the profile could not be written to {self.folder} ({error}); training goes on")
            return
        self.show(found)

    def _put_together(self, trace: Path) -> Profile:
        recipe, dtype = self.trainer.recipe, self.trainer.model.dtype
        traced = read_trace(trace)
        place = middle(traced)
        rates = measure_rates(self.device, _PROBE)
        return Profile(
            name=recipe.name,
            folder=self.folder,
            step=self._first + place,
            traced=len(traced),
            device=torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device),
            dtype=str(dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            sequences=recipe.train.batch_size,
            micro_batches=self.trainer.accumulate,
            seq_len=recipe.train.seq_len,
            times=traced[place],
            plain=tuple(self._plain),
            flops=part_flops(recipe),
            rate=rates.bf16 if dtype == torch.bfloat16 and rates.bf16 else rates.fp32,
            memory=self._memory,
            resident=resident_peak(),
            # Beside a GPU what the host's allocator does hardly matters.
            keeps_memory=try_allocator().effective if self.device.type == "cpu" else None,
            compiled=self.trainer.compiler is not None,
        )


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


def _activities(device: torch.device) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")


def part_flops(recipe: Recipe) -> dict[str, int]:
    """Operations of matrix products in one training step by part, backward included; see model/flops.py."""
    config, t, o = recipe.model, recipe.train, recipe.optim
    tensors = shapes(config)
    f = flops_per_token(config, t.seq_len, tensors=tensors)
    kind = "GQA" if config.kv_lora_rank is None else "MLA"
    linear = config.linear_attn_config
    # Of each of the three a channel has one filter.
    filters = 2 * 3 * linear.width * linear.short_conv_kernel_size * config.num_kda_layers if linear else 0
    of_token = {
        f"{kind}: projections": f.attention,
        f"{kind}: attention": f.scores,
        KDA_PROJECTIONS: f.kda - filters,
        KDA_CONVOLUTION: filters,
        KDA_DELTA: f.delta,
        ROUTER: f.router,
        EXPERTS: f.routed_experts,
        SHARED: f.shared_experts,
        DENSE: f.dense,
        HEAD: f.head,
    }
    tokens = t.batch_size * t.seq_len
    found = {part: TRAINING * flops * tokens for part, flops in of_token.items() if flops}
    # Heads cut apart are other products than are counted there.
    if o.kind != "adamw" and not o.muon_per_head:
        found[NEWTON_SCHULZ] = muon_flops(tensors, o.ns_steps)
    return found


def most_held(trace: list[Mapping[str, Any]]) -> int:
    """Bytes that tensors held at most beyond those that were there when the trace began, from its events."""
    changes = sorted((e["ts"], i, e["args"]["Bytes"]) for i, e in enumerate(trace) if e.get("name") == "[memory]")
    held = most = 0
    for _, _, size in changes:
        held += size
        most = max(most, held)
    return most
