"""What a run will take, before it is started: sizes, operations, memory, time, disk. Nothing is written.

Time is measured where that takes a few seconds: real steps of the actual model on random tokens. A step is

    seconds = micro-batches * (forward and backward) + optimizer

and both are told apart by stepping with one micro-batch and with two. A model too large for that is counted instead,
operations over the machine's measured rate, at a share of the rate that such models reach.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Size

from moonlet import text
from moonlet.config import Recipe
from moonlet.config.recall import RECALL
from moonlet.config.sections import TokenizerSettings, TrainSettings
from moonlet.data.corpus import Corpus
from moonlet.data.expected import expected_bytes
from moonlet.data.open import open_corpus
from moonlet.data.recall import RecallTask
from moonlet.model.count import count, shapes
from moonlet.model.flops import Flops, flops_per_token
from moonlet.model.init import build
from moonlet.ops.allocator import keep_freed_memory
from moonlet.ops.newton_schulz import STEPS
from moonlet.optim.blocks import matrix_counts
from moonlet.optim.optimizer import build_optimizer
from moonlet.train.compile import worthwhile
from moonlet.train.machine import read_machine
from moonlet.train.memory import Memory, training_memory
from moonlet.train.precision import compute_dtype, pick_device
from moonlet.train.probe import measure_rates, synchronise
from moonlet.train.step import train_step

# The share of the measured rate of large products that training reaches where no step could be measured. On two CPU
# cores k2-nano reaches a fifth; large models on one GPU are commonly reported between a third and a half.
USUAL_UTILISATION = {"cpu": 0.2, "cuda": 0.35}
# English text, for tokenizers that do not exist yet.
USUAL_BYTES_PER_TOKEN = 4.0
_PROBE = 1.0  # seconds the machine is measured for
_PATIENCE = 8.0  # seconds that steps are measured for, about
_SAMPLE = 200_000


@dataclass(frozen=True)
class Speed:
    """Seconds a step, and where they come from.

    measured: whether steps of the actual model were timed; `sequences` at once, scaled to the recipe's if fewer.
    utilisation: operations a second over the machine's rate of large products in the compute dtype.
    """

    step_seconds: float
    measured: bool
    sequences: int
    rate: float
    utilisation: float


@dataclass(frozen=True)
class Plan:
    """A run before it runs. Bytes and seconds; None is unknown."""

    name: str
    device: str
    dtype: str
    parameters: int
    active: int
    flops: Flops
    step_tokens: int
    steps: int | None
    tokens: int | None
    text_tokens: int | None  # in one pass over the training text
    text_is_exact: bool
    memory: Memory
    available: int | None
    speed: Speed
    seconds: float | None
    checkpoint_bytes: int
    disk_bytes: int
    disk_free: int
    compile: str  # "on" or "off", and why; the speed is that without

    @property
    def fits(self) -> bool | None:
        """Whether the memory is there; None: unknown."""
        return None if self.available is None else self.memory.total <= self.available

    @property
    def epochs(self) -> float | None:
        """Passes over the training text."""
        return self.tokens / self.text_tokens if self.tokens and self.text_tokens else None

    def as_values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        more = {"fits": self.fits, "epochs": self.epochs}
        values = asdict(self)
        values["memory"]["total"] = self.memory.total
        values["flops"] |= {"total": self.flops.total, "training": self.flops.training}
        return values | more


def plan_run(recipe: Recipe, out: Path) -> Plan:
    """Estimate the run of `recipe`, whose folder would be `out`.

    Raises:
        ValueError, FileNotFoundError: what the run itself would raise about its text, tokenizer or device.
    """
    t = recipe.train
    if t.threads:
        torch.set_num_threads(t.threads)
    device = pick_device(t.device)
    dtype = compute_dtype(t.dtype, device)
    # A recall task is no text: it is drawn while it is read, and never read twice.
    corpus = None if recipe.data.kind in RECALL else open_corpus(recipe.data)
    if corpus is None:
        vocabulary, bytes_per_token, exact = RecallTask.of(recipe.data).tokenizer().vocab_size, 1.0, True
    else:
        vocabulary, bytes_per_token, exact = _vocabulary(recipe, corpus)
    config = recipe.model.replace(vocab_size=vocabulary)
    tensors = shapes(config)
    counts, flops = count(config, tensors), flops_per_token(config, t.seq_len, tensors=tensors)
    micro = t.micro_batch_size or t.batch_size

    def memory(batch: int) -> Memory:
        return training_memory(
            config, tensors, optimizer=recipe.optim.kind, batch=batch, seq_len=t.seq_len,
            dtype=dtype, device=device, documents=t.separate_documents,
        )  # fmt: skip

    available = _available(device)
    room = available or 0
    fitting = next((b for b in (micro, 1) if memory(b).total < 0.8 * room), None)
    speed = step_speed(replace(recipe, model=config), device, dtype, flops, tensors, fitting)
    steps = t.steps or (max(1, int(t.minutes * 60 / speed.step_seconds)) if t.minutes else None)
    size = None if corpus is None else expected_bytes(corpus, "train")
    needed = memory(micro)
    checkpoint = needed.weights + needed.optimizer
    return Plan(
        name=recipe.name,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        parameters=counts.total,
        active=counts.active_with_head,
        flops=flops,
        step_tokens=t.batch_size * t.seq_len,
        steps=steps,
        tokens=steps * t.batch_size * t.seq_len if steps else None,
        text_tokens=round(size / bytes_per_token) if size else None,
        text_is_exact=exact,
        memory=needed,
        available=available,
        speed=speed,
        seconds=steps * speed.step_seconds if steps else None,
        checkpoint_bytes=checkpoint,
        # One more is written before the oldest is removed; then the finished model.
        disk_bytes=(t.keep_last + 1) * checkpoint + needed.weights,
        disk_free=shutil.disk_usage(_existing(out)).free,
        compile=_compile(t, device),
    )


def _compile(settings: TrainSettings, device: torch.device) -> str:
    if settings.compile != "auto":
        return f"{settings.compile}, as asked for"
    auto = worthwhile(settings, device)
    return f"{auto.word}: {auto.why}"


def check_room(recipe: Recipe) -> None:
    """Refuse a run whose weights, gradients and optimizer state alone are more than the memory that is free.

    Raises:
        ValueError: with both sizes.
    """
    device = pick_device(recipe.train.device)
    available = _available(device)
    m = training_memory(
        recipe.model, shapes(recipe.model), optimizer=recipe.optim.kind, batch=1, seq_len=1, dtype=torch.float32,
        device=device,
    )  # fmt: skip
    held = m.weights + m.gradients + m.optimizer
    if available is not None and held > available:
        raise ValueError(
            f"training this model takes {held / 2**30:,.1f} GiB for weights, gradients and optimizer alone, and "
            f"{available / 2**30:,.1f} GiB are free on {device}; choose a smaller model"
        )


def step_speed(
    recipe: Recipe,
    device: torch.device,
    dtype: torch.dtype,
    flops: Flops,
    tensors: Mapping[str, Size],
    batch: int | None,
) -> Speed:
    """Seconds one step of `recipe` takes.

    Args:
        flops: of one token at the recipe's length.
        batch: sequences at once that fit into memory; None: not one does.
    """
    t = recipe.train
    rates = measure_rates(device, _PROBE)
    rate = rates.bf16 if dtype == torch.bfloat16 and rates.bf16 else rates.fp32
    work = flops.training * t.batch_size * t.seq_len
    assumed = rate * USUAL_UTILISATION["cuda" if device.type == "cuda" else "cpu"]
    orthogonal = muon_flops(tensors, recipe.optim.ns_steps) if recipe.optim.kind != "adamw" else 0
    micro = t.micro_batch_size or t.batch_size
    for sequences in sorted({batch or 0, 1 if batch else 0}, reverse=True):
        # Four runs of one to two micro-batches each, and four of the optimizer.
        expected = (6 * flops.training * sequences * t.seq_len + 4 * orthogonal) / assumed
        if sequences and expected < _PATIENCE:
            forward, optimizer = time_step(recipe, device, dtype, sequences)
            seconds = forward * t.batch_size / sequences + optimizer
            return Speed(seconds, True, min(sequences, micro), rate, work / seconds / rate)
    return Speed((work + orthogonal) / assumed, False, 0, rate, assumed / rate)


def time_step(recipe: Recipe, device: torch.device, dtype: torch.dtype, sequences: int) -> tuple[float, float]:
    """Measure the actual model on random tokens.

    Returns:
        Seconds of a forward and backward of `sequences` sequences, and of the optimizer's step.
    """
    t = recipe.train
    keep_freed_memory()
    model = build(recipe.model, device, t.seed)
    model.compute_dtype = dtype
    optimizer = build_optimizer(model, recipe.optim)
    ids = torch.randint(recipe.model.vocab_size, (sequences, t.seq_len + 1), device=device)
    batch = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step(micro_batches: int) -> float:
        begin = time.perf_counter()
        train_step(
            model, optimizer, [batch] * micro_batches, count=micro_batches, lr=1e-4, grad_clip=t.grad_clip,
            bias_update_speed=recipe.optim.bias_update_speed, aux_loss_alpha=recipe.optim.aux_loss_alpha,
            bos_id=0 if t.separate_documents else None,
            qk_clip_tau=recipe.optim.clip_tau,
        )  # fmt: skip
        synchronise(device)
        return time.perf_counter() - begin

    begin = time.perf_counter()
    step(1)  # kernels are built and memory grows in the first step
    once = [step(1)]
    twice: list[float] = []
    # Where even this took long, as on a machine that others use, one reading must do.
    while time.perf_counter() - begin < _PATIENCE / 2 and len(twice) < 7:
        twice.append(step(2))
        once.append(step(1))
    if not twice:
        return once[0], 0.0
    forward = min(max(median(twice) - median(once), 0.3 * median(once)), median(once))
    return forward, median(once) - forward


def muon_flops(tensors: Mapping[str, Size], steps: int = STEPS) -> int:
    """Operations of orthogonalising all matrices once: three products a Newton-Schulz step (ops/newton_schulz.py)."""
    total = 0
    for shape, matrices in matrix_counts(tensors).items():
        small, large = sorted(shape)
        total += matrices * steps * (4 * small * small * large + 2 * small**3)
    return total


def _vocabulary(recipe: Recipe, corpus: Corpus) -> tuple[int, float, bool]:
    """Ids the model will have, bytes a token of the training text, and whether that was measured."""
    settings: TokenizerSettings = recipe.tokenizer
    if recipe.train.init:
        return recipe.model.vocab_size, USUAL_BYTES_PER_TOKEN, False
    if settings.path:
        tokenizer = text.load(Path(settings.path))
    elif settings.kind == "byte":
        tokenizer = text.ByteTokenizer()
    else:
        return settings.vocab_size, USUAL_BYTES_PER_TOKEN, False
    if recipe.data.kind == "tinystories" and not recipe.data.path:
        return tokenizer.vocab_size, USUAL_BYTES_PER_TOKEN, False  # looking into it would download it
    size = tokens = 0
    for document in corpus.documents("train"):
        size += len(document.encode())
        tokens += len(tokenizer.encode(document)) + 1
        if size > _SAMPLE:
            break
    return tokenizer.vocab_size, size / max(tokens, 1), True


def _available(device: torch.device) -> int | None:
    """Bytes that can still be taken on `device`."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return read_machine().available


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
