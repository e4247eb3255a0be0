"""The language model: embedding, layers, final norm, head. Parameter names are the official checkpoint's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moonlet.config import ModelConfig
from moonlet.model.cache import Cache, DeltaCache, KeyValueCache, LatentCache, LayerCache
from moonlet.model.layer import Layer
from moonlet.model.linear import Linear, TiedHead
from moonlet.model.norm import RMSNorm
from moonlet.model.rope import rope_of
from moonlet.ops.loss import cross_entropy, token_losses


class Embedding(nn.Module):
    """`weight` [vocabulary, D]; token -> row."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [B, T] -> [B, T, D] in the weight's dtype"""
        return F.embedding(tokens, self.weight)


class Decoder(nn.Module):
    """Embedding, layers and final norm: everything but the head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class CausalLM(nn.Module):
    """A Kimi-K2, Kimi Linear, Moonlight or DeepSeek-V3 of any size, or its like with grouped-query attention.

    `compute_dtype` is what activations flow in; None follows the embedding's dtype. Weights of another dtype are cast
    where they are used.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head: Linear | TiedHead
        if config.tie_word_embeddings:
            self.lm_head = TiedHead(self.model.embed_tokens)
        else:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.compute_dtype: torch.dtype | None = None
        self._rope = rope_of(config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What activations flow in."""
        return self.compute_dtype or self.model.embed_tokens.weight.dtype

    def hidden(self, tokens: Tensor, cache: Cache | None = None, documents: Tensor | None = None) -> Tensor:
        """Final normed activations. tokens int64 [B, T] -> [B, T, D]; arguments and errors as in `forward`, `loss`."""
        if tokens.dim() != 2 or tokens.dtype != torch.int64 or not tokens.numel():
            given = f"{tokens.dtype} {list(tokens.shape)}"
            raise ValueError(f"tokens are {given}; they must be torch.int64 [B, T], at least one")
        B, T = tokens.shape
        start: int | Tensor = 0
        if cache is not None:
            if cache.batch != B:
                raise ValueError(f"tokens have {B} rows and the cache {cache.batch}; both must be equal")
            cache.check_room(T)
            start = cache.start(tokens.device)
        elif self.config.context_limit < T:
            raise ValueError(f"{T} tokens exceed {_limit(self.config)}")
        x = self.model.embed_tokens(tokens).to(self.dtype)  # (B, T, D)
        rotation = None if self._rope is None else self._rope(start, T, tokens.device)
        for i, layer in enumerate(self.model.layers):
            x = layer(x, rotation, start, None if cache is None else cache.layers[i], documents)
        if cache is not None:
            cache.settle(T)
        out: Tensor = self.model.norm(x)
        return out

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits of the next token at each position.

        Args:
            tokens: int64 [B, T], each in 0 .. vocab_size - 1.
            cache: from `new_cache`; the tokens follow those it holds, and it then holds them too.

        Returns:
            [B, T, vocab_size] in the compute dtype.

        Raises:
            ValueError: wrong shape or dtype, or more tokens than the cache or the model has positions for.
        """
        logits: Tensor = self.lm_head(self.hidden(tokens, cache))
        return logits

    def last_logits(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits after the last token only: [B, vocab_size]. What a decode step needs."""
        logits: Tensor = self.lm_head(self.hidden(tokens, cache)[:, -1])
        return logits

    def loss(self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats a token, fp32 scalar.

        Args:
            tokens: int64 [B, T].
            targets: int64 [B, T]; -100 is skipped.
            documents: int64 [B, T], which of a row's packed documents each token belongs to; a token then sees its
                own document only. None: one document a row.
        """
        return cross_entropy(
            self.hidden(tokens, documents=documents).flatten(0, 1), self.lm_head.weight, targets.flatten()
        )

    def token_losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each target in nats, fp32 [B, T], zero where the target is -100. No gradient."""
        with torch.no_grad():
            return token_losses(self.hidden(tokens).flatten(0, 1), self.lm_head.weight, targets.flatten()).view_as(
                targets
            )

    def new_cache(self, batch: int, max_len: int) -> Cache:
        """An empty cache for `batch` texts of up to `max_len` tokens, in the compute dtype."""
        config, limit = self.config, self.config.context_limit
        if batch < 1 or not 1 <= max_len <= limit:
            raise ValueError(
                f"a cache of {batch} rows and {max_len} positions; rows must be at least 1 and positions in 1..{limit}"
            )
        layers = [self.layer_cache(i, batch, max_len) for i in range(config.num_hidden_layers)]
        return Cache(layers, torch.zeros(batch, dtype=torch.int64), max_len)

    def layer_cache(self, layer: int, batch: int, max_len: int) -> LayerCache:
        """One layer's part of a cache, [batch, max_len] as it lays them out; what `new_cache` is made of."""
        config = self.config

        def zeros(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        if config.is_kda(layer):
            linear = config.linear_attn_config
            assert linear is not None
            exact = torch.promote_types(self.dtype, torch.float32)  # fp64 where the model is
            state = zeros(batch, linear.num_heads, linear.head_dim, linear.head_dim, dtype=exact)
            return DeltaCache(state, zeros(batch, linear.short_conv_kernel_size - 1, 3 * linear.width))
        if config.kv_lora_rank is None:
            return KeyValueCache(zeros(2, batch, config.num_key_value_heads, max_len, config.head_dim))
        return LatentCache(zeros(batch, max_len, config.kv_lora_rank + config.qk_rope_head_dim))


def _limit(config: ModelConfig) -> str:
    """What bounds a text's length, in words."""
    limit, trained = config.context_limit, config.max_position_embeddings
    stretched = f", stretched to {limit}" if limit != trained else ""
    return f"max_position_embeddings {trained}{stretched}"
