"""What a token costs: floating-point operations of the matrix products, by part.

A matrix [out, in] costs one multiplication and one addition an entry, so a token pays 2 out in for each matrix that it
is multiplied with; of the routed experts it meets A. Attention also pays for the S keys a token sees, in each layer:

    scores = 2 H (w_k + w_v) S      w_k, w_v: widths of a key and a value as they are attended to

Heads of MLA attend to keys of K + P and values of V, formed from the latents; a decode step in absorbed form attends
to the cached entries themselves, R + P and R wide, and pays the same for the projections: W_kvb works on the query and
the output instead. KDA pays the same however long the text is, for a head of width d and the recurrence's chunks of C
tokens (arXiv 2510.26692):

    delta  = 6 d^2 + 3 C d + C^2      a text read at once
    delta  = 6 d^2                    one token: the state is read, corrected and read again

The backward takes two products for each of the forward's, so training costs three times as much.
Looking up a row of the embedding multiplies nothing; norms, rope and the softmax are not products and do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Size

from moonlet.config import ModelConfig
from moonlet.model.count import part_of, shapes

CHUNK = 64  # tokens that KDA takes at once, as published
TRAINING = 3  # a forward, the gradient of the inputs, the gradient of the weights


@dataclass(frozen=True)
class Flops:
    """Operations one token takes in a forward pass, over all layers; `training` times those for a training step."""

    embedding: int = 0
    attention: int = 0  # the projections
    scores: int = 0  # queries against keys, probabilities against values
    kda: int = 0  # its projections and filters
    delta: int = 0  # the recurrence of its states
    dense: int = 0
    router: int = 0
    routed_experts: int = 0  # the active ones
    shared_experts: int = 0
    head: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """The parts by name; they sum to `total`."""
        names = (
            "embedding", "attention", "scores", "kda", "delta", "dense", "router", "routed_experts", "shared_experts",
            "head",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> int:
        """A forward pass."""
        return sum(self.parts.values())

    @property
    def training(self) -> int:
        """A forward and a backward pass."""
        return TRAINING * self.total


def flops_per_token(
    config: ModelConfig, context: int, *, absorbed: bool = False, tensors: Mapping[str, Size] | None = None
) -> Flops:
    """Operations of one token that sees `context` keys, itself included.

    A whole text of T tokens costs T times this with context = T where every product is taken in full, as the mask hides
    half of it afterwards; kernels that skip what is hidden pay for a context of (T + 1) / 2.

    Args:
        config: of any size.
        context: keys a token, at least 1.
        absorbed: a decode step, in which MLA attends to the cached latents and KDA takes one step of its recurrence.
        tensors: what `shapes(config)` returned, where the caller has it already.

    Raises:
        ValueError: a context below 1 or beyond the model's positions.
    """
    limit = config.context_limit
    if not 1 <= context <= limit:
        raise ValueError(f"a context of {context} tokens; it must lie in 1..{limit}, the positions this model has")
    sums = dict.fromkeys(Flops().parts, 0)
    for name, shape in (shapes(config) if tensors is None else tensors).items():
        part = part_of(name, config)
        if len(shape) < 2 or part in ("embedding", "head") or name.endswith("A_log"):
            continue
        share = shape[0] if part == "routed_experts" else 1  # stacked [E, out, in]
        active = config.num_experts_per_tok if part == "routed_experts" else 1
        sums[part] += 2 * shape.numel() // share * active
    key, value = attended_widths(config, absorbed=absorbed)
    attending = config.num_hidden_layers - config.num_kda_layers
    sums["scores"] = 2 * config.num_attention_heads * (key + value) * context * attending
    sums["delta"] = _delta(config, CHUNK if not absorbed else 0)
    # Not from a tensor: a head that shares the embedding's matrix multiplies with it all the same.
    sums["head"] = 2 * config.hidden_size * config.vocab_size
    return Flops(**sums)


def _delta(config: ModelConfig, chunk: int) -> int:
    """Operations of one token on the states of all KDA layers; in chunks of so many tokens, or 0: one by one."""
    linear = config.linear_attn_config
    if linear is None:
        return 0
    d = linear.head_dim
    return config.num_kda_layers * linear.num_heads * (6 * d * d + 3 * chunk * d + chunk * chunk)


def attended_widths(config: ModelConfig, *, absorbed: bool = False) -> tuple[int, int]:
    """Widths of the key and of the value that each head attends to."""
    if config.kv_lora_rank is None:
        return config.head_dim, config.head_dim
    if absorbed:
        return config.kv_lora_rank + config.qk_rope_head_dim, config.kv_lora_rank
    return config.qk_head_dim, config.v_head_dim
