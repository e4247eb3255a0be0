"""A model trains the same with its C++ kernels and without them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch

from moonlet.model.model import CausalLM
from moonlet.ops.dispatch import force
from moonlet.ops.native import library
from tests.conftest import GQA

WITHOUT = {"attention": "products", "swiglu": "reference", "rms_norm": "reference", "cross_entropy": "chunked"}
KERNELS = ("attention", "swiglu", "norm", "loss")

pytestmark = pytest.mark.skipif(any(library(name) is None for name in KERNELS), reason="no C++ compiler here")


def losses(model: CausalLM, native: bool, steps: int) -> torch.Tensor:
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    ids = torch.randint(0, model.config.vocab_size, (4, 34), generator=torch.Generator().manual_seed(0))
    documents = (ids[:, :-1] < 3).cumsum(1)
    found = []
    with ExitStack() as stack:
        if not native:
            for op, name in WITHOUT.items():
                stack.enter_context(force(op, name))
        for _ in range(steps):
            loss = model.loss(ids[:, :-1], ids[:, 1:], documents)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
    return torch.stack(found)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-4), (torch.bfloat16, 8e-2)])
@pytest.mark.parametrize("changes", [{}, GQA], ids=["mla", "gqa"])
def test_fifty_steps_with_and_without_kernels(
    tiny_model: Callable[..., CausalLM], changes: dict[str, object], dtype: torch.dtype, within: float
) -> None:
    runs = []
    for native, steps in ((True, 50), (False, 50), (True, 12)):
        model = tiny_model(**changes).train()
        model.compute_dtype = dtype
        runs.append(losses(model, native, steps))
    assert runs[0][-1] < 0.6 * runs[0][0]  # it learns
    torch.testing.assert_close(runs[0], runs[1], rtol=within, atol=within)
    assert torch.equal(runs[0][:12], runs[2])  # to the same bits each time
