"""One text under the microscope: how likely each token was, which experts it took, what a head looks at or forgets.

    probability    p(token t | tokens before t), and the likeliest tokens in its place
    experts        [T, A] chosen in each layer that has them, with their weights
    attention      [T, T] of a head of MLA or GQA: row t is how token t weighs tokens 0 .. t
    decay          [T, K] of a head of KDA: what token t leaves of each key channel of the state, 1 all and 0 nothing
    kept           [T, T] of the same: what of the state after token s is left after token t, the mean over channels

All from one plain forward without a cache. What a cache takes is a function of the length alone: attention grows with
it and KDA does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from moonlet.generate.request import Likely
from moonlet.model.count import cache_bytes_per_token, conv_cache_bytes, state_bytes
from moonlet.model.gqa import GQA
from moonlet.model.kda import KDA
from moonlet.model.mla import MLA
from moonlet.model.model import CausalLM
from moonlet.model.observe import (
    evaluating,
    probabilities,
    watching_attention,
    watching_decay,
    watching_routing,
)

MAX_TOKENS = 4096
"""What is looked at at once; a map of attention has its square of numbers."""
MAX_LIKELY = 50


@dataclass(frozen=True)
class View:
    """What was seen of a text of T tokens. Tensors lie on the CPU, layers and heads are 0-indexed.

    Attributes:
        ids: the tokens.
        logprobs: of each token the logarithm of its probability after those before it; None for the first.
        likely: for each token the likeliest in its place, likeliest first; nothing for the first.
        next: the likeliest behind the last.
        experts: int64 [T, A] by layer: the chosen experts.
        weights: fp32 [T, A] by layer: what each of them weighs.
        layer, head: what the following are of; None where none was asked for.
        attention: fp32 [T, T], query by key, of a head that attends.
        decay: fp32 [T, K] of a head of KDA.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    likely: tuple[tuple[Likely, ...], ...]
    next: tuple[Likely, ...]
    experts: dict[int, Tensor]
    weights: dict[int, Tensor]
    layer: int | None = None
    head: int | None = None
    attention: Tensor | None = None
    decay: Tensor | None = None

    def kept(self) -> Tensor:
        """What of KDA's state after token s (column) is left after token t (row): the mean over key channels of the
        product of their decays. fp32 [T, T], 1 on the diagonal and 0 above it.

        Raises:
            ValueError: the view is of no head of KDA.
        """
        if self.decay is None:
            raise ValueError("only a head of KDA forgets; look at one with layer and head")
        logs = self.decay.double().clamp(min=1e-300).log().cumsum(0)  # (T, K)
        kept = torch.zeros(len(logs), len(logs))
        for t, now in enumerate(logs):
            kept[t, : t + 1] = (now - logs[: t + 1]).exp().mean(-1)
        return kept


@torch.no_grad()
def look(
    model: CausalLM,
    ids: Sequence[int],
    layer: int | None = None,
    head: int | None = None,
    *,
    k: int = 10,
    vocabulary: int | None = None,
) -> View:
    """Read `ids` once and tell what happened.

    Args:
        ids: T tokens of one text.
        layer, head: whose attention or decay to show, both or neither.
        k: likeliest tokens to tell at each place, in 0..MAX_LIKELY.
        vocabulary: ids that the tokenizer has; others are not told. None takes the model's.

    Raises:
        ValueError: no tokens, too many, or one that the model does not have; no such layer or head.
    """
    _check(model, ids, layer, head, k)
    tokens = torch.tensor([list(ids)], device=model.device)  # (1, T)
    maps: list[Tensor] = []

    def keep(at: int, q: Tensor, keys: Tensor, scale: float, start: int | Tensor, documents: Tensor | None) -> None:
        if at == layer and head is not None:
            group = head * keys.shape[1] // q.shape[1]
            one = probabilities(q[:, head : head + 1], keys[:, group : group + 1], scale, start, documents)
            maps.append(one[0, 0])

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        routing = stack.enter_context(watching_routing(model))
        decays: list[Tensor] = []
        if layer is not None and _is_kda(model, layer):
            decays = stack.enter_context(watching_decay(model, layer))
        elif layer is not None:
            stack.enter_context(watching_attention(model, keep))
        log_p = model(tokens)[0].float().log_softmax(-1)  # (T, vocabulary)
    told = _likeliest(log_p, k, vocabulary)
    came = log_p[:-1].gather(-1, tokens[0, 1:, None])[:, 0].tolist()
    return View(
        tuple(ids),
        (None, *came),
        ((), *told[:-1]),
        told[-1],
        {at: parts[0].index.cpu() for at, parts in routing.items()},
        {at: parts[0].weight.float().cpu() for at, parts in routing.items()},
        layer,
        head,
        maps[0].cpu() if maps else None,
        decays[0][0, :, head].float().cpu() if decays else None,
    )


@dataclass(frozen=True)
class CacheGrowth:
    """What the cache of one text takes.

    Attributes:
        per_token: bytes of each token, of all layers that attend.
        constant: bytes of the states of all layers of KDA, whatever the length.
    """

    per_token: int
    constant: int

    def at(self, length: int) -> int:
        """Bytes of a text of `length` tokens."""
        return self.constant + self.per_token * length


def cache_growth(model: CausalLM) -> CacheGrowth:
    """Bytes of the model's cache as a function of the length."""
    config, size = model.config, model.dtype.itemsize
    constant = state_bytes(config) + conv_cache_bytes(config, size)
    return CacheGrowth(cache_bytes_per_token(config, size), constant)


def heads(model: CausalLM, layer: int) -> int:
    """Heads of a layer's mixer, which `look` can show."""
    mixer = model.model.layers[layer].self_attn
    assert isinstance(mixer, MLA | GQA | KDA)
    return mixer.heads


def _is_kda(model: CausalLM, layer: int) -> bool:
    return isinstance(model.model.layers[layer].self_attn, KDA)


def _likeliest(log_p: Tensor, k: int, vocabulary: int | None) -> list[tuple[Likely, ...]]:
    known = log_p[:, :vocabulary]
    best = known.topk(min(k, known.shape[1]), -1)
    return [
        tuple(Likely(token, value) for token, value in zip(*row, strict=True))
        for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _check(model: CausalLM, ids: Sequence[int], layer: int | None, head: int | None, k: int) -> None:
    most = min(MAX_TOKENS, model.config.context_limit)
    if not 1 <= len(ids) <= most:
        raise ValueError(f"the text has {len(ids)} tokens; the microscope reads 1..{most} at once")
    V = model.config.vocab_size
    beyond = [token for token in ids if not 0 <= token < V]
    if beyond:
        raise ValueError(f"token {beyond[0]} is outside the model's vocabulary, 0..{V - 1}")
    if not 0 <= k <= MAX_LIKELY:
        raise ValueError(f"k is {k}; it must lie in 0..{MAX_LIKELY}")
    if (layer is None) != (head is None):
        raise ValueError("a layer is looked at one head at a time; give both layer and head, or neither")
    if layer is None or head is None:
        return
    L = len(model.model.layers)
    if not 0 <= layer < L:
        raise ValueError(f"layer {layer} is not there; the model has layers 0..{L - 1}")
    H = heads(model, layer)
    if not 0 <= head < H:
        raise ValueError(f"head {head} is not there; layer {layer} has heads 0..{H - 1}")
