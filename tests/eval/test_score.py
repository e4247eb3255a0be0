"""Scores through a shared cache, side by side and one by one are the same, and equal token_losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moonlet.eval import score as module
from moonlet.eval.score import Passage, passage, score
from moonlet.text import ByteTokenizer

STORY = "Tom the fox lost a kite in the park, and Mia found it under a tree. "


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model(vocab_size=272)


def directly(model: Any, p: Passage) -> float:
    ids = torch.tensor([p.ids])
    return float(model.token_losses(ids[:, :-1], ids[:, 1:])[0, p.start - 1 :].sum())


def test_every_way_of_reading_gives_the_token_losses(model: Any) -> None:
    tokenizer = ByteTokenizer()
    passages = [passage(tokenizer, STORY, answer, 512) for answer in ("Mia", "Tom", "the fox", "M", "Mia ran")]
    passages += [passage(tokenizer, f"{n} apples", " fell" * n, 512) for n in (1, 2, 5)]
    passages.append(passage(tokenizer, "", "alone", 512))
    found = score(model, passages)
    for p, s in zip(passages, found, strict=True):
        assert s.count == p.count
        assert s.nats == pytest.approx(directly(model, p), abs=1e-4)
    backwards = score(model, passages[::-1])[::-1]
    assert [s.nats for s in backwards] == pytest.approx([s.nats for s in found], abs=1e-4)


def test_a_common_beginning_is_read_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    hidden = type(model).hidden

    def counting(self: Any, tokens: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        read.append(tokens.numel())
        return hidden(self, tokens, *rest, **named)

    monkeypatch.setattr(type(model), "hidden", counting)
    passages = [passage(ByteTokenizer(), STORY, answer, 512) for answer in ("Mia", "Tom", "Ben", "Max")]
    score(model, passages)
    assert sum(read) < 2 * len(STORY)


def test_greedy_is_what_greedy_decoding_writes(model: Any) -> None:
    ids = [0, 40, 50, 60]
    for _ in range(5):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert score(model, [Passage(tuple(ids), 4)])[0].greedy
    ids[-2] = (ids[-2] + 1) % 272
    assert not score(model, [Passage(tuple(ids), 4)])[0].greedy


def test_logits_in_parts_are_logits_at_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [0, 40, 50, 60, 70]
    ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    whole = score(model, [Passage(tuple(ids), 1)])[0]
    monkeypatch.setattr(module, "_BATCH_LOGITS", 1)  # a token at a time
    parts = score(model, [Passage(tuple(ids), 1)])[0]
    assert parts.nats == pytest.approx(whole.nats, abs=1e-4)
    assert not parts.greedy  # though its last token is
    assert score(model, [Passage(tuple(ids), 5)])[0].greedy


def test_the_oldest_tokens_of_a_long_context_give_way(model: Any) -> None:
    tokenizer = ByteTokenizer()
    p = passage(tokenizer, "x" * 600 + "the end", " is near", 40)
    assert len(p.ids) - 1 == 40
    assert p.count == len(" is near")
    assert tokenizer.decode(p.ids[p.start :]) == " is near"
    assert score(model, [p])[0].nats == pytest.approx(directly(model, p), abs=1e-4)


def test_impossible_continuations_are_errors() -> None:
    with pytest.raises(ValueError, match="no token of its own"):
        passage(ByteTokenizer(), "a", "", 40)
    with pytest.raises(ValueError, match="50 tokens exceeds the 40"):
        passage(ByteTokenizer(), "a", "b" * 50, 40)


def test_scoring_leaves_the_mode_alone(model: Any) -> None:
    model.train()
    score(model, [Passage((0, 20, 30), 1)])
    assert model.training
    model.eval()
