"""Packed documents do not see each other: a document's outputs are those it has alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moonlet.ops.attention import products, reference, sdpa
from moonlet.ops.dispatch import force
from tests.conftest import GQA, HYBRID


@pytest.mark.parametrize("kind", ["reference", "sdpa", "products", "grouped"])
@pytest.mark.parametrize("changes", [{}, GQA, HYBRID], ids=["mla", "gqa", "kda"])
def test_a_packed_document_equals_the_document_alone(
    tiny_model: Callable[..., Any], kind: str, changes: dict[str, Any]
) -> None:
    model = tiny_model(**changes)
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randint(0, 61, (1, n), generator=generator) for n in (7, 1, 20, 12)]
    packed = torch.cat(parts, 1)
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor([7, 1, 20, 12]))[None]
    # Another row with other borders: the mask is each row's own.
    rows, borders = torch.cat((packed, packed.flip(1))), torch.cat((documents, documents // 2))
    with force("attention", kind):
        together = model.hidden(rows, documents=borders)[0]
        begin = 0
        for part in parts:
            alone = model.hidden(part)[0]
            # Rope turns by differences of positions, so that a document may begin anywhere.
            torch.testing.assert_close(together[begin : begin + part.shape[1]], alone, rtol=1e-5, atol=1e-5)
            begin += part.shape[1]


@pytest.mark.parametrize("kind", [sdpa, products])
def test_every_implementation_masks_documents_in_value_and_gradient(kind: Callable[..., torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(2, 3, 33, 8, generator=generator, requires_grad=True) for _ in range(2))
    v = torch.randn(2, 3, 33, 5, generator=generator, requires_grad=True)
    documents = torch.sort(torch.randint(0, 4, (2, 33), generator=generator)).values
    law = reference(q, k, v, 0.3, 0, documents)
    out = kind(q, k, v, 0.3, 0, documents)
    torch.testing.assert_close(out, law, rtol=1e-5, atol=1e-5)
    weight = torch.randn(law.shape, generator=generator)
    wanted = torch.autograd.grad((law * weight).sum(), (q, k, v))
    got = torch.autograd.grad((out * weight).sum(), (q, k, v))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
