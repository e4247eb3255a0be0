"""A text's memory in blocks, wherever they lie, gives the bits of a contiguous one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moonlet.generate.native_step import NativeStep
from moonlet.model.cache import Cache
from moonlet.model.model import CausalLM
from moonlet.model.paged_cache import PagedCache
from moonlet.ops.native import library, why_not
from tests.conftest import GQA, HYBRID

Make = Callable[..., CausalLM]
MIXERS: dict[str, dict[str, Any]] = {"mla": {}, "gqa": GQA, "hybrid": HYBRID}
LENGTHS = [5, 1, 20, 13]


def paged(model: CausalLM, block: int, seed: int = 0) -> PagedCache:
    """Everything is NaN, and each text has blocks from anywhere."""
    most = -(-40 // block)
    cache = PagedCache(model, texts=4, blocks=4 * most + 3, block=block, most=most, spare=2)
    order = torch.randperm(4 * most + 3, generator=torch.Generator().manual_seed(seed))
    cache.tables.copy_(order[: 4 * most].view(4, most))
    for i in range(4 * most + 3):
        cache.poison_block(i)
    for row in range(6):
        cache.poison_state(row)
    return cache


def feed(step: NativeStep, rows: list[tuple[int, int, int]], wanted: list[int], cache: PagedCache) -> torch.Tensor:
    """Rows of (token, position, text)."""
    tokens, positions, texts = (list(column) for column in zip(*rows, strict=True))
    return step.feed(tokens, positions, texts, wanted, cache)


@pytest.mark.skipif(library("decode") is None, reason=why_not("decode"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block", [1, 3, 8, 32])
@pytest.mark.parametrize("changes", MIXERS.values(), ids=MIXERS)
def test_the_native_step_reads_blocks_to_the_bit(
    tiny_model: Make, changes: dict[str, Any], block: int, dtype: torch.dtype
) -> None:
    model = tiny_model(**changes).to(dtype)
    step, cache = NativeStep(model), paged(model, block)
    texts = [[(3 * n + i) % 61 for n in range(length)] for i, length in enumerate(LENGTHS)]
    whole = model.new_cache(4, 40)
    want = step.read(texts, whole)
    # Some texts are read at once, some in two calls beside others.
    first = [(t, n, i) for i in (2, 0) for n, t in enumerate(texts[i][: 7 + i])]
    assert feed(step, first, [], cache).shape == (0, 61)
    rest = [(t, n, i) for i in range(4) for n, t in enumerate(texts[i]) if (t, n, i) not in first]
    ends = [k for k, (_, n, i) in enumerate(rest) if n + 1 == LENGTHS[i]]
    assert torch.equal(feed(step, rest, ends, cache), want[[rest[k][2] for k in ends]])
    for _ in range(10):
        tokens = want.argmax(-1)
        lengths = whole.lengths.tolist()
        want = step(tokens, whole)
        backwards = [(int(tokens[i]), lengths[i], i) for i in (3, 2, 1, 0)]
        assert torch.equal(feed(step, backwards, [0, 1, 2, 3], cache), want.flip(0))


@pytest.mark.parametrize("changes", MIXERS.values(), ids=MIXERS)
def test_the_model_reads_and_writes_blocks_through_a_contiguous_copy(tiny_model: Make, changes: dict[str, Any]) -> None:
    model, tokens = tiny_model(**changes), torch.arange(30)[None]
    cache, whole = paged(model, 8), model.new_cache(1, 30)
    for first, last in ((0, 5), (5, 16), (16, 17), (17, 30)):
        own: Cache = cache.contiguous(2, first, last - first)
        with torch.no_grad():
            got, want = (model.last_logits(tokens[:, first:last], c) for c in (own, whole))
        cache.put_back(own, 2, first, last)
        assert torch.equal(got, want)


def test_a_copied_block_and_state_are_what_was_copied(tiny_model: Make) -> None:
    for changes in MIXERS.values():
        model = tiny_model(**changes)
        cache = paged(model, 8)
        own = cache.contiguous(0, 0, 13)
        with torch.no_grad():
            model.last_logits(torch.arange(13)[None], own)
            cache.put_back(own, 0, 0, 13)
            cache.tables[1, 0] = cache.tables[0, 0]
            cache.copy_block(int(cache.tables[0, 1]), int(cache.tables[1, 1]), 5)
            cache.copy_state(0, 5)
            cache.poison_state(0)
            cache.copy_state(5, 1)
            for layer in own.layers[:-1] if changes is HYBRID else ():  # views of row 0, which is NaN now
                assert all(t.isnan().all() for t in vars(layer).values() if t is not None)
            fresh = model.new_cache(1, 20)
            model.last_logits(torch.arange(13)[None], fresh)
            want = model.last_logits(torch.tensor([[1, 2, 3]]), fresh)
            assert torch.equal(model.last_logits(torch.tensor([[1, 2, 3]]), cache.contiguous(1, 13, 3)), want)
