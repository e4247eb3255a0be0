"""Bits per byte counts every token once, whatever the windows, and matches a hand count."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moonlet.eval.bits import encoded, measure, windows
from moonlet.text import ByteTokenizer


@given(st.integers(2, 200), st.integers(1, 40))
def test_windows_count_every_target_once_with_enough_before_it(length: int, context: int) -> None:
    ids = list(range(length))
    counted = []
    for w in windows(ids, context):
        assert len(w.ids) - 1 <= context
        new = list(w.ids[1 + w.skip :])
        if counted:
            # A later window's first counted token has at least half a window before it.
            assert w.skip + 1 >= context // 2
        counted += new
    assert counted == ids[1:]


def test_a_uniform_model_needs_log2_of_the_vocabulary_a_token(tiny_model: Callable[..., Any]) -> None:
    tokenizer = ByteTokenizer()
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    texts = ["hello", "h\u00e9llo w\u00f6rld", "x" * 300]
    result = measure(model, encoded(tokenizer, texts), context=64)
    size = sum(len(t.encode()) for t in texts)
    assert (result.bytes, result.documents, result.tokens) == (size, 3, size + 3)  # an [EOS] each
    assert result.bits_per_byte == pytest.approx(math.log2(tokenizer.vocab_size) * (size + 3) / size, rel=1e-6)
    assert result.loss == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-6)


def test_the_sum_is_that_of_the_documents_one_by_one(tiny_model: Callable[..., Any]) -> None:
    tokenizer = ByteTokenizer()
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    texts = [f"story {i} " * (i + 1) for i in range(7)]
    whole = measure(model, encoded(tokenizer, texts), context=32)
    singles = [measure(model, encoded(tokenizer, [t]), context=32) for t in texts]
    assert whole.nats == pytest.approx(sum(s.nats for s in singles), rel=1e-5)
    direct = 0.0
    for ids, _ in encoded(tokenizer, texts[:3]):
        logp = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
        direct -= logp.gather(1, torch.tensor(ids[1:])[:, None]).sum().item()
    assert sum(s.nats for s in singles[:3]) == pytest.approx(direct, rel=1e-5)


def test_measuring_leaves_the_mode_and_the_loads_alone(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(vocab_size=272).train()
    measure(model, encoded(ByteTokenizer(), ["some text"]), context=16)
    assert model.training
    assert all(int(m.load.sum()) == 0 for m in model.modules() if hasattr(m, "load"))


def test_impossible_requests_are_errors(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(vocab_size=272)
    with pytest.raises(ValueError, match=r"context is 513; it must lie in 1\.\.512"):
        measure(model, [], context=513)
    with pytest.raises(ValueError, match="no text"):
        measure(model, [], context=16)
