"""The likelihood of what follows, given what came before: log p(continuation | context), in nats.

    -log p = sum over the continuation's tokens of -log p(token | all before it)

Many continuations of one text (answers to questions about a story) read that text once: it fills a cache, and each
continuation goes on from a copy of it. The others are read side by side, batched by length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moonlet.model.model import CausalLM
from moonlet.text.tokenizer import Tokenizer

# Tokens read at once, padding included, and logits held at once.
_BATCH_TOKENS = 8192
_BATCH_LOGITS = 1 << 24


@dataclass(frozen=True)
class Passage:
    """Token ids, [BOS] first, of which those from `start` (at least 1) on are scored."""

    ids: tuple[int, ...]
    start: int

    @property
    def count(self) -> int:
        """Scored tokens."""
        return len(self.ids) - self.start


@dataclass(frozen=True)
class Score:
    """nats: -log p of the scored tokens. greedy: whether each is the likeliest one where it stands."""

    nats: float
    count: int
    greedy: bool


def passage(tokenizer: Tokenizer, context: str, continuation: str, limit: int) -> Passage:
    """`continuation` after `context`, as one text is tokenized; the oldest tokens give way to fit `limit` inputs.

    Raises:
        ValueError: the continuation has no token of its own, or alone exceeds the limit.
    """
    before, whole = tokenizer.encode(context), tokenizer.encode(context + continuation)
    # Where a token spans the border, scoring begins with that token.
    start = _same(before, whole)
    if start == len(whole):
        raise ValueError(f"the continuation {continuation!r} has no token of its own, so it has no likelihood")
    if len(whole) - start > limit:
        raise ValueError(f"a continuation of {len(whole) - start} tokens exceeds the {limit} tokens read at once")
    ids = [tokenizer.bos_id, *whole]
    cut = max(0, len(ids) - 1 - limit)
    return Passage(tuple(ids[cut:]), start + 1 - cut)


@torch.no_grad()
def score(model: CausalLM, passages: Sequence[Passage]) -> list[Score]:
    """Score passages; the results are in their order, and do not depend on it."""
    was_training = model.training
    model.eval()
    # Sorted by their tokens, passages with a common beginning lie together.
    order = sorted(range(len(passages)), key=lambda i: (passages[i].ids, passages[i].start))
    scores: dict[int, Score] = {}
    alone: list[int] = []
    try:
        for group in _families(passages, order):
            if len(group) == 1:
                alone += group
                continue
            for members in _split(passages, group):
                scores.update(zip(members, _continued(model, [passages[i] for i in members]), strict=True))
        alone.sort(key=lambda i: len(passages[i].ids))
        for members in _split(passages, alone):
            scores.update(zip(members, _side_by_side(model, [passages[i] for i in members]), strict=True))
    finally:
        model.train(was_training)
    return [scores[i] for i in range(len(passages))]


def _shared(a: Passage, b: Passage) -> int:
    """Tokens that both may read from one cache: the last before the first scored one is an input of its own."""
    same = _same(a.ids, b.ids)
    return min(same, a.start - 1, b.start - 1)


def _families(passages: Sequence[Passage], order: Sequence[int]) -> Iterator[list[int]]:
    """Neighbours of which each shares at least half of itself with the first one."""
    family: list[int] = []
    for i in order:
        if family and 2 * _shared(passages[family[0]], passages[i]) < len(passages[i].ids):
            yield family
            family = []
        family.append(i)
    if family:
        yield family


def _split(passages: Sequence[Passage], members: Sequence[int]) -> Iterator[list[int]]:
    """Parts that fit into one batch."""
    part: list[int] = []
    longest = 0
    for i in members:
        longest = max(longest, len(passages[i].ids))
        if part and (len(part) + 1) * longest > _BATCH_TOKENS:
            yield part
            part, longest = [], len(passages[i].ids)
        part.append(i)
    if part:
        yield part


def _continued(model: CausalLM, family: Sequence[Passage]) -> list[Score]:
    """Read the common beginning once, then each rest from a copy of the cache."""
    first = family[0]
    shared = min(_shared(first, other) for other in family)
    longest = max(len(p.ids) for p in family) - 1
    cache = model.new_cache(1, longest)
    if shared:
        model.hidden(torch.tensor([first.ids[:shared]], device=model.device), cache)
    return _rows(model, family, shared, lambda tokens: model.hidden(tokens, cache.keep([0] * len(family))))


def _side_by_side(model: CausalLM, row: Sequence[Passage]) -> list[Score]:
    return _rows(model, row, 0, model.hidden)


def _rows(model: CausalLM, rows: Sequence[Passage], skip: int, hidden: Callable[[Tensor], Tensor]) -> list[Score]:
    """Score passages without their first `skip` tokens, padded on the right, where causal attention never looks."""
    width = max(len(p.ids) for p in rows) - 1 - skip
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    for row, p in enumerate(rows):
        tokens[row, : len(p.ids) - 1 - skip] = torch.tensor(p.ids[skip:-1])
    states = hidden(tokens.to(model.device))  # (B, T, D)
    out = []
    for row, p in enumerate(rows):
        scored = states[row, p.start - 1 - skip : len(p.ids) - 1 - skip]  # (count, D)
        targets = torch.tensor(p.ids[p.start :], device=model.device)
        out.append(_score(model, scored, targets))
    return out


def _score(model: CausalLM, states: Tensor, targets: Tensor) -> Score:
    """states [count, D], targets int64 [count]."""
    nats, greedy = 0.0, True
    step = max(1, _BATCH_LOGITS // model.config.vocab_size)
    for part, aim in zip(states.split(step), targets.split(step), strict=True):
        logits = model.lm_head(part).float()  # (count, vocab_size)
        losses = logits.logsumexp(-1) - logits.gather(1, aim[:, None])[:, 0]
        nats += float(losses.double().sum())
        greedy = greedy and bool((logits.argmax(-1) == aim).all())
    return Score(nats, len(targets), greedy)


def _same(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the beginning that both share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
