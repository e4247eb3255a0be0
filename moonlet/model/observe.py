"""Looking into a model while it reads: attention probabilities, decays, the routers' scores and choices, logits.

    p = softmax(q k^T scale)        [H, T, T] a layer, from the very q and k that the layer attends with
    a = exp(g)                      [T, H, K] what a KDA layer leaves of its state's key channels before each token
    s, index, w                     [T, E], [T, A], [T, A] a router
    entropy = - sum_j r_j ln r_j,   r = s / sum s        how undecided a router is about a token, in nats

Attention is watched where its implementation is chosen, and the chosen one still computes the result: an observed
model gives the same bits as an unobserved one. A model is observed in evaluation mode, so its loads stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moonlet.model.kda import KDA
from moonlet.model.model import CausalLM
from moonlet.model.router import Router
from moonlet.ops.attention import attention, causal_mask
from moonlet.ops.dispatch import force, register

# Called with the layer, and q, k, scale, start and documents of `ops.attention`.
Seen = Callable[[int, Tensor, Tensor, float, int | Tensor, Tensor | None], None]


@dataclass(frozen=True)
class Routing:
    """What one router said about T tokens: `scores` fp32 [T, E] before the balance bias, `index` int64 [T, A] of the
    chosen experts and their `weight` fp32 [T, A]."""

    scores: Tensor
    index: Tensor
    weight: Tensor

    def entropy(self) -> Tensor:
        """Entropy of each token's normalised scores in nats, fp32 [T]; ln E when all experts look alike."""
        r = self.scores / self.scores.sum(-1, keepdim=True).clamp(min=1e-20)
        entropy: Tensor = torch.special.entr(r).sum(-1)
        return entropy


@dataclass(frozen=True)
class Observation:
    """What was seen: `logits` fp32 [T, vocabulary]; `attention` and `routing` by layer, 0-indexed, where the layer has
    such a thing. Attention is fp32 [H, T, T], query by key."""

    logits: Tensor
    attention: dict[int, Tensor]
    routing: dict[int, Routing]


@torch.no_grad()
def observe(model: CausalLM, tokens: Tensor) -> Observation:
    """Read `tokens` and return what happened inside.

    Args:
        tokens: int64 [T], one text. Memory for the probabilities grows with layers H T^2.

    Raises:
        ValueError: not int64 [T], or more tokens than the model has positions.
    """
    if tokens.dim() != 1:
        raise ValueError(f"tokens are {list(tokens.shape)}; observe reads one text, int64 [T]")
    seen: dict[int, Tensor] = {}
    with evaluating(model), watching_routing(model) as routing, _attention(model, seen):
        logits = model(tokens[None])[0].float()  # (T, vocabulary)
    return Observation(logits, seen, {layer: parts[0] for layer, parts in routing.items()})


@torch.no_grad()
def router_entropy(model: CausalLM, tokens: Tensor, documents: Tensor | None = None) -> dict[int, float]:
    """Mean entropy of the routers' normalised scores over all tokens, in nats, by layer; empty without routers.

    Args:
        tokens: int64 [B, T].
        documents: as in `CausalLM.loss`.
    """
    with evaluating(model), watching_routing(model) as routing:
        model.hidden(tokens, documents=documents)
    return {layer: torch.cat([r.entropy() for r in parts]).mean().item() for layer, parts in routing.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def watching_routing(model: CausalLM) -> Iterator[dict[int, list[Routing]]]:
    """Collect what every router says inside the block."""
    seen: dict[int, list[Routing]] = {}

    def note(layer: int, router: Router, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        scores = router.scores(F.linear(inputs[0].float(), router.weight.float()))  # (N, E)
        seen.setdefault(layer, []).append(Routing(scores, *output))

    with ExitStack() as stack:
        for i, layer in enumerate(model.model.layers):
            for module in layer.modules():
                if isinstance(module, Router):
                    stack.callback(module.register_forward_hook(partial(note, i)).remove)
        yield seen


@contextmanager
def watching_decay(model: CausalLM, layer: int) -> Iterator[list[Tensor]]:
    """Collect what the KDA layer `layer` (0-indexed) leaves of its state at each token of forwards inside the block:
    fp32 [B, T, H, K] in 0..1, one a forward."""
    mixer = model.model.layers[layer].self_attn
    assert isinstance(mixer, KDA)
    seen: list[Tensor] = []
    hook = mixer.register_forward_pre_hook(lambda module, inputs: seen.append(mixer._log_decay(inputs[0]).exp()))
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def watching_attention(model: CausalLM, see: Seen) -> Iterator[None]:
    """Show every attention of forwards inside the block to `see`, before it is computed as it would be without us.

    Args:
        see: told what each layer (0-indexed) attends with.
    """
    current = -1

    def enter(layer: int, *_: Any) -> None:
        nonlocal current
        current = layer

    def watched(
        q: Tensor, k: Tensor, v: Tensor, scale: float, start: int | Tensor, documents: Tensor | None = None
    ) -> Tensor:
        see(current, q, k, scale, start, documents)
        # The choice as it is without us, whether by the op's own rule or forced from outside.
        watch.close()
        try:
            return attention(q, k, v, scale=scale, start=start, documents=documents)
        finally:
            watch.enter_context(force("attention", "watched"))

    register("attention", "watched")(watched)
    with ExitStack() as hooks, ExitStack() as watch:
        for i, layer in enumerate(model.model.layers):
            hooks.callback(layer.register_forward_pre_hook(partial(enter, i)).remove)
        watch.enter_context(force("attention", "watched"))
        yield


@contextmanager
def _attention(model: CausalLM, seen: dict[int, Tensor]) -> Iterator[None]:
    """Keep the probabilities of each layer's attention inside the block."""

    def keep(layer: int, q: Tensor, k: Tensor, scale: float, start: int | Tensor, documents: Tensor | None) -> None:
        seen[layer] = probabilities(q, k, scale, start, documents)[0]

    with watching_attention(model, keep):
        yield


def probabilities(
    q: Tensor, k: Tensor, scale: float, start: int | Tensor = 0, documents: Tensor | None = None
) -> Tensor:
    """softmax(q k^T scale), causal, in fp32: what `ops.attention` weighs the values with.

    Args:
        q: [B, H, T, K].
        k: [B, G, S, K]; each of the G key heads serves H / G query heads.
        scale, start, documents: as in `ops.attention`.

    Returns:
        fp32 [B, H, T, S].
    """
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)  # (B, H, S, K)
    logits = (q @ k.transpose(-1, -2)).float() * scale  # (B, H, T, S)
    mask = causal_mask(start, q.shape[2], k.shape[2], q.device, documents)
    return logits.masked_fill(~mask, float("-inf")).softmax(-1)
