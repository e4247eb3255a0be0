"""With several ranks the peaks are joined: all clip alike, by the largest logit that any of them saw."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from moonlet.config import ModelConfig
from moonlet.model.init import build
from moonlet.model.model import CausalLM
from moonlet.optim.qk_clip import qk_clip, track_logits
from tests.train import tiny

TAU = 0.05


def small() -> CausalLM:
    return build(ModelConfig(**tiny.MODEL, vocab_size=64, initializer_range=0.1)).train()


def read(model: CausalLM, rank: int) -> None:
    model(torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(rank)))


def one_rank(rank: int, folder: Path) -> None:
    """The target of a child process: read a text of its own, clip, and write down what came of it."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = small()
    track_logits(model, TAU)
    read(model, rank)
    record = qk_clip(model, TAU)
    parts = {name: torch.tensor(record[name]) for name in ("max_logits", "gamma")}
    save_file(model.state_dict() | parts, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32", reason="forkserver and file:// meetings are for POSIX")
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs torch.distributed with gloo")
def test_all_ranks_clip_alike_by_the_largest_logit_of_any(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "tests.train.tiny"])
    children = [context.Process(target=one_rank, args=(rank, tmp_path), daemon=True) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    model, alone = small(), []
    for rank in range(2):
        track_logits(model, None, exact=True)
        read(model, rank)
        alone.append(torch.tensor(qk_clip(model, None)["max_logits"]))
    largest = torch.stack(alone).amax(0)
    assert not torch.equal(alone[0], largest)
    assert not torch.equal(alone[1], largest)
    beyond = largest > TAU
    assert beyond.any()
    torch.testing.assert_close(first["max_logits"][beyond], largest[beyond])
    torch.testing.assert_close(first["gamma"], torch.where(beyond, TAU / largest, torch.ones(())))
