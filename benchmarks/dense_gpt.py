"""A dense GPT in plain PyTorch, the peer a mixture of experts has to beat: x = x + attn(norm(x)); x = x + mlp(norm(x)).

What a careful author of a small GPT would write today: RMSNorm before each part, rotary positions, one product for
queries, keys and values, SDPA, SwiGLU, fp32 master weights cast to bf16 where they are used, residual outputs that
begin small (GPT-2). `equal_active` gives it the width and depth of a mixture of experts and the inner width with which
a token passes through equally many parameters.

It is trained by moonlet's own step, loop, loader and optimizers, so that nothing but the model differs. Of a model they
need `loss`, `token_losses`, `device`, `compute_dtype`, `config`, and the layers' `self_attn`. Parameters are named so
that `moonlet.optim.groups` sorts them as it sorts moonlet's; queries, keys and values are stacked, and so are gate and
up, so that Muon orthogonalises each by itself.

B batch, T time, D width, H heads, K head width, I inner width.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from moonlet.config import ModelConfig
from moonlet.model.count import count
from moonlet.ops.loss import cross_entropy, token_losses

# Rows of inner width: what matrix units like, and fine enough for any count of parameters within a percent.
_TILE = 8


@dataclass(frozen=True)
class DenseConfig:
    """Widths, depth, and which of two ways is taken where one is quicker here and the other there.

    `attention` is "sdpa" or "products" (a softmax over batched products); `head` is "plain" or "chunked" (moonlet's
    loss, which never holds all logits).
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    inner: int
    tied: bool = False
    dropout: float = 0.0
    theta: float = 10000.0
    eps: float = 1e-6
    context_limit: int = 2048
    attention: str = "sdpa"
    head: str = "plain"
    separate_documents: bool = True  # whether packed documents are kept apart where the loop says which is which

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"width {self.width} over {self.heads} heads; each head must be of even width")
        for name, value, valid in (
            ("attention", self.attention, ("sdpa", "products")),
            ("head", self.head, ("plain", "chunked")),
        ):
            if value not in valid:
                raise ValueError(f"{name} is {value!r}; valid: {', '.join(map(repr, valid))}")

    @property
    def active(self) -> int:
        """Parameters a token passes through, embedding and head not counted; as `moonlet.model.count` counts them."""
        per_layer = 4 * self.width**2 + 3 * self.width * self.inner + 2 * self.width
        return self.layers * per_layer + self.width

    def training_flops(self, context: int) -> int:
        """Operations of the products of one token in a training step, when it meets `context` keys."""
        products = self.layers * (4 * self.width**2 + 3 * self.width * self.inner) + self.width * self.vocab_size
        return 3 * (2 * products + 4 * self.layers * self.width * context)


def equal_active(
    config: ModelConfig, *, width: int = 0, layers: int = 0, heads: int = 0, head_width: int = 32, **others: object
) -> DenseConfig:
    """The dense GPT whose active parameters are those of `config`, to the tile.

    Args:
        width, layers: 0: as `config`'s.
        heads: 0: as many as have `head_width` channels each.
        others: fields of `DenseConfig`.

    Raises:
        ValueError: attention alone exceeds the count.
    """
    D, L = width or config.hidden_size, layers or config.num_hidden_layers
    wanted = count(config).active
    left = wanted - L * (4 * D**2 + 2 * D) - D
    inner = round(left / (3 * D * L) / _TILE) * _TILE
    if inner < _TILE:
        raise ValueError(f"{L} layers of width {D} leave nothing for the MLP within {wanted:,} active parameters")
    settings = {"vocab_size": config.vocab_size, "context_limit": config.max_position_embeddings} | others
    return DenseConfig(width=D, layers=L, heads=heads or D // head_width, inner=inner, **settings)  # type: ignore[arg-type]


class Norm(nn.Module):
    """RMSNorm in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]"""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Stacked(nn.Module):
    """n linear maps without bias as one product: `weight` [n, out, in]."""

    def __init__(self, n: int, inputs: int, outputs: int, std: float) -> None:
        super().__init__()
        shape = (n, outputs, inputs) if n > 1 else (outputs, inputs)
        self.weight = nn.Parameter(torch.randn(shape) * std)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., n out]"""
        return F.linear(x, self.weight.to(x.dtype).view(-1, self.weight.shape[-1]))


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        D = config.width
        self.heads, self.dropout, self.products = config.heads, config.dropout, config.attention == "products"
        self.qkv = Stacked(3, D, D, 0.02)
        self.out = Stacked(1, D, D, 0.02 / math.sqrt(2 * config.layers))

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
        """[B, T, D] -> [B, T, D]

        Args:
            turn: cos and sin, [T, 1, K/2].
            bias: added to the logits, [B, 1, T, T] or [T, T]; None: causal.
        """
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, -1).unbind(2)  # (B, T, H, K)
        q, k, v = (z.transpose(1, 2) for z in (_rotate(q, turn), _rotate(k, turn), v))  # (B, H, T, K)
        if self.products:
            logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias  # (B, H, T, T)
            y = logits.softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None)
        return self.out(y.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = turn
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        self.gate_up = Stacked(2, config.width, config.inner, 0.02)
        self.down = Stacked(1, config.inner, config.width, 0.02 / math.sqrt(2 * config.layers))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]"""
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(config), MLP(config)
        self.attention_norm, self.mlp_norm = Norm(config.width, config.eps), Norm(config.width, config.eps)
        self.dropout = config.dropout

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
        """[B, T, D] -> [B, T, D]"""
        x = x + F.dropout(self.self_attn(self.attention_norm(x), turn, bias), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training)


class Body(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = Norm(config.width, config.eps)


class DenseGPT(nn.Module):
    """The model; `compiled` puts the training forward under torch.compile.

    `compute_dtype` is what activations flow in; None: that of the weights, fp32.
    """

    def __init__(self, config: DenseConfig, seed: int = 0, compiled: bool = False) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = Body(config)
            self.lm_head = None if config.tied else Stacked(1, config.width, config.vocab_size, 0.02)
        half = config.width // config.heads // 2
        angle = torch.arange(config.context_limit)[:, None] * config.theta ** -(torch.arange(half) / half)  # (S, K/2)
        self.register_buffer("_cos", angle.cos()[:, None], persistent=False)
        self.register_buffer("_sin", angle.sin()[:, None], persistent=False)
        self._forward = torch.compile(self._mean_loss) if compiled else self._mean_loss

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What activations flow in."""
        return self.compute_dtype or torch.float32

    @property
    def head(self) -> Tensor:
        """[vocabulary, D]"""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def hidden(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """Final normed activations: tokens int64 [B, T], and of which document each is -> [B, T, D]"""
        T = tokens.shape[1]
        if self.config.context_limit < T:
            raise ValueError(f"{T} tokens exceed the {self.config.context_limit} that this model has positions for")
        x = F.embedding(tokens, self.model.embed_tokens.weight).to(self.dtype)  # (B, T, D)
        turn = self._cos[:T].to(x.dtype), self._sin[:T].to(x.dtype)  # type: ignore[index]
        bias = self._bias(T, documents if self.config.separate_documents else None, x.dtype)
        for layer in self.model.layers:
            x = layer(x, turn, bias)
        out: Tensor = self.model.norm(x)
        return out

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits: int64 [B, T] -> [B, T, vocabulary]"""
        x = self.hidden(tokens)
        return F.linear(x, self.head.to(x.dtype))

    def loss(self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats a token, fp32 scalar; arguments as of `CausalLM.loss`."""
        return self._forward(tokens, targets, documents)

    def token_losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each target, fp32 [B, T], zero where the target is -100. No gradient."""
        with torch.no_grad():
            return token_losses(self.hidden(tokens).flatten(0, 1), self.head, targets.flatten()).view_as(targets)

    def _mean_loss(self, tokens: Tensor, targets: Tensor, documents: Tensor | None) -> Tensor:
        x = self.hidden(tokens, documents).flatten(0, 1)  # (N, D)
        if self.config.head == "chunked":
            return cross_entropy(x, self.head, targets.flatten())
        return F.cross_entropy(F.linear(x, self.head.to(x.dtype)).float(), targets.flatten(), ignore_index=-100)

    def _bias(self, T: int, documents: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """What is added to the logits: minus infinity on keys a query must not see. None: SDPA's own causal path."""
        if documents is None and self.config.attention == "sdpa":
            return None
        seen = torch.ones(T, T, dtype=torch.bool, device=self.device).tril()
        if documents is not None:
            seen = seen & (documents[:, None, :, None] == documents[:, None, None, :])  # (B, 1, T, T)
        return torch.zeros(seen.shape, dtype=dtype, device=self.device).masked_fill(~seen, -math.inf)
