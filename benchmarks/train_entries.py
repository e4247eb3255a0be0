"""What `train.py` times: training steps of moonlet, of transformers' model of the same weights, and of a dense GPT.

An entry is a family and its settings; `build_step` makes a function of it that takes one whole step (forward, backward,
clipping, optimizer) on the same tokens as all others.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from dense_gpt import DenseGPT, equal_active
from torch import Tensor

from moonlet.config import ModelConfig
from moonlet.config.sections import OptimSettings
from moonlet.hub.write import write_model
from moonlet.model.flops import flops_per_token
from moonlet.model.init import build
from moonlet.optim.optimizer import build_optimizer
from moonlet.train.precision import compute_dtype
from moonlet.train.step import train_step

Step = Callable[[], float]


@dataclass(frozen=True)
class Work:
    """The model, the tokens and the device of one table."""

    config: ModelConfig
    batch: int
    seq_len: int
    dtype: str = "auto"
    device: str = "cpu"

    @cached_property
    def tokens(self) -> Tensor:
        """int64 [batch, T + 1], drawn evenly: what they are does not matter to the clock."""
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, self.config.vocab_size, (self.batch, self.seq_len + 1), generator=generator)
        return tokens.to(self.device)

    @cached_property
    def folder(self) -> tempfile.TemporaryDirectory[str]:
        """moonlet's weights as a Hugging Face model, for peers to load; goes with this object."""
        folder = tempfile.TemporaryDirectory(prefix="moonlet-bench-")
        write_model(build(self.config), Path(folder.name), {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2})
        return folder

    @cached_property
    def compute_dtype(self) -> torch.dtype:
        """What moonlet and the dense GPT compute in."""
        return compute_dtype(self.dtype, torch.device(self.device))

    @property
    def per_step(self) -> int:
        """Tokens."""
        return self.batch * self.seq_len


@dataclass(frozen=True)
class Entry:
    """One line of the table. `settings` are the family's own, as strings: an entry can be named to another process."""

    family: str  # "moonlet", "transformers", "dense"
    settings: tuple[tuple[str, str], ...] = field(default=())

    @property
    def given(self) -> dict[str, str]:
        """The settings as a table."""
        return dict(self.settings)

    @property
    def compiled(self) -> bool:
        """Whether torch.compile is on."""
        return self.given.get("compile") == "on"

    @property
    def name(self) -> str:
        """For people."""
        g, compiled = self.given, ", compiled" if self.compiled else ""
        if self.family == "moonlet":
            return f"moonlet, {NAMES[g['optim']]}{compiled}"
        if self.family == "dense":
            return f"dense GPT, {NAMES[g['optim']]} ({g['attention']}, {g['head']} head{compiled})"
        return f"transformers ({g['dtype']}, {g['attention']} attention, {g['experts']} experts{compiled})"

    def training_flops(self, work: Work, context: int) -> int:
        """Operations of the model's products for one token."""
        if self.family == "dense":
            return equal_active(work.config, head_width=head_width(work)).training_flops(context)
        return flops_per_token(work.config, context).training


NAMES = {"adamw": "AdamW", "muon": "Muon", "muonclip": "MuonClip"}


def entry(family: str, **settings: str) -> Entry:
    """An entry by its settings."""
    return Entry(family, tuple(sorted(settings.items())))


def transformers_entries(compiled: bool) -> list[Entry]:
    """Every setting worth a trial; compiled, both attentions with the experts that compile as one."""
    # Its third expert implementation, batched_mm, copies an expert's weights for every token: gigabytes at this size.
    if compiled:
        dtypes, experts, more = ("bfloat16",), ("grouped_mm",), {"compile": "on"}
    else:
        dtypes, experts, more = ("float32", "bfloat16"), ("eager", "grouped_mm"), {}
    return [
        entry("transformers", dtype=dtype, attention=attention, experts=e, **more)
        for dtype, attention, e in product(dtypes, ("eager", "sdpa"), experts)
    ]


def dense_entries(optim: str, compiled: bool) -> list[Entry]:
    """Both ways to attend and to take the loss."""
    more = {"compile": "on"} if compiled else {}
    return [
        entry("dense", optim=optim, attention=attention, head=head, **more)
        for attention, head in product(("sdpa", "products"), ("plain", "chunked"))
    ]


def moonlet_entries(compiled: bool) -> list[Entry]:
    """With both optimizers."""
    more = {"compile": "on"} if compiled else {}
    return [entry("moonlet", optim=optim, **more) for optim in ("adamw", "muonclip")]


def build_step(work: Work, chosen: Entry) -> Step:
    """The function that takes one step of an entry; compiled ones compile when it is first called."""
    if chosen.family == "transformers":
        return _transformers_step(work, chosen)
    optim = OptimSettings(kind=chosen.given["optim"])
    more = {}
    if chosen.family == "moonlet":
        model = build(work.config, work.device)
        if chosen.compiled:
            from moonlet.train.compile import Compiler

            more["compiler"] = Compiler()
    else:
        ways = {name: chosen.given[name] for name in ("attention", "head")}
        dense = equal_active(work.config, head_width=head_width(work), **ways)
        model = DenseGPT(dense, compiled=chosen.compiled).to(work.device)
    model.compute_dtype = work.compute_dtype
    optimizer = build_optimizer(model, optim)
    batch = work.tokens[:, :-1].contiguous(), work.tokens[:, 1:].contiguous()

    def step() -> float:
        return train_step(
            model, optimizer, [batch], count=1, lr=1e-4, grad_clip=1.0, bias_update_speed=1e-3,
            qk_clip_tau=optim.clip_tau, **more,
        ).loss  # fmt: skip

    return step


def head_width(work: Work) -> int:
    """Of the dense GPT's heads: 64, as GPT-2's."""
    return min(64, work.config.hidden_size)


def _transformers_step(work: Work, chosen: Entry) -> Step:
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    g = chosen.given
    model = AutoModelForCausalLM.from_pretrained(
        work.folder.name,
        dtype=getattr(torch, g["dtype"]),
        attn_implementation=g["attention"],
        experts_implementation=g["experts"],
    )
    model = model.to(work.device).train()
    if chosen.compiled:
        model.forward = torch.compile(model.forward)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    # Its loss shifts labels by itself, so both see seq_len predictions.
    tokens = work.tokens

    def step() -> float:
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step
