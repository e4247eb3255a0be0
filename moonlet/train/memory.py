"""How much memory training takes, before it takes it.

    weights      4 bytes a parameter (fp32 masters)
    gradients    4
    optimizer    AdamW 8; Muon 4 for matrices, 8 for embedding, head and norms
    activations  what the forward keeps for the backward, tensor by tensor as the layers save them
    workspace    the larger of what the loss and the optimizer's step hold for a moment

Letters: N tokens at once, s bytes of the compute dtype. A bf16 forward also keeps a bf16 copy of every matrix. Tests
hold the activations against what autograd really saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Size

from moonlet.config import ModelConfig
from moonlet.model.count import part_of
from moonlet.ops import attention
from moonlet.ops.delta_chunked import segment_tokens
from moonlet.ops.delta_native import SPAN
from moonlet.ops.dispatch import chosen
from moonlet.ops.experts_native import available, rows_to
from moonlet.ops.native.call import native_fits
from moonlet.ops.newton_schulz import chunk
from moonlet.optim.blocks import matrix_counts
from moonlet.optim.groups import group_of

# What a run's process holds beside the model: the libraries (about 240 MiB), and what reading the text and training its
# tokenizer leaves in the allocator. Peaks of whole runs of k2-nano were between 0.89 and 1.25 of the estimate.
PROCESS = {"cpu": 550 * 2**20, "cuda": 600 * 2**20}


@dataclass(frozen=True)
class Memory:
    """Bytes by what holds them."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int
    process: int

    @property
    def total(self) -> int:
        """The peak: the parts that are there together. Activations are gone when the optimizer works."""
        held = self.weights + self.gradients + self.optimizer + self.process
        return held + max(self.activations, self.workspace)


def training_memory(
    config: ModelConfig,
    tensors: Mapping[str, Size],
    *,
    optimizer: str,
    batch: int,
    seq_len: int,
    dtype: torch.dtype,
    device: torch.device,
    documents: bool = True,
) -> Memory:
    """Estimate the peak of a training step.

    Args:
        tensors: what `shapes(config)` returned.
        optimizer: optim.kind of the recipe.
        batch: sequences at once (a micro-batch).
        dtype: compute dtype; weights are fp32.
        documents: whether packed documents are kept apart, which needs a mask for every row.
    """
    learned = {name: shape for name, shape in tensors.items() if not name.endswith("e_score_correction_bias")}
    parameters = sum(shape.numel() for shape in learned.values())
    matrices = {name: shape for name, shape in learned.items() if group_of(name, len(shape)) == "matrices"}
    with_muon = optimizer != "adamw"
    by_muon = sum(shape.numel() for shape in matrices.values()) if with_muon else 0
    kept = activations(config, batch, seq_len, dtype, device, documents)
    if dtype != torch.float32:
        kept += dtype.itemsize * sum(s.numel() for name, s in matrices.items() if part_of(name, config) != "router")
    loss = _loss_workspace(config, batch * seq_len)
    return Memory(
        weights=4 * parameters,
        gradients=4 * parameters,
        optimizer=8 * parameters - 4 * by_muon,
        activations=kept + loss,
        workspace=_muon_workspace(matrices, device) if with_muon else 0,
        process=PROCESS["cuda" if device.type == "cuda" else "cpu"],
    )


def activations(
    config: ModelConfig, batch: int, seq_len: int, dtype: torch.dtype, device: torch.device, documents: bool = True
) -> int:
    """Bytes that autograd keeps of one forward of [batch, seq_len] tokens, without copies of weights."""
    s, D = dtype.itemsize, config.hidden_size
    attention = _attention_bytes(config, seq_len, dtype, device, documents)
    kda = _kda_bytes(config, batch, seq_len, dtype, device, documents)
    total = 0.0
    for layer in range(config.num_hidden_layers):
        total += (kda if config.is_kda(layer) else attention) + 2 * _norm_bytes(D, dtype, device)
        if config.is_moe(layer):
            total += _expert_bytes(config, batch * seq_len, dtype, device)
        else:
            total += _swiglu_bytes(config.intermediate_size, dtype, device)
    total += _norm_bytes(D, dtype, device) + D * s  # the final norm, and the loss's gradient of its result
    return round(batch * seq_len * total)


def _native(kernels: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether activations of this kind go through the C++ kernels of that name."""
    return device.type == "cpu" and native_fits(kernels, torch.empty(0, dtype=dtype))


def _norm_bytes(width: int, dtype: torch.dtype, device: torch.device) -> int:
    """A norm keeps its fp32 input, and in compute dtype the normalised and the scaled result; the kernel its input, its
    result and a number a row."""
    if _native("norm", dtype, device):
        return 2 * width * dtype.itemsize + 4
    return width * (4 + 2 * dtype.itemsize)


def _swiglu_bytes(inner: int, dtype: torch.dtype, device: torch.device) -> int:
    """Gate, up and their product, and silu(gate) but for the kernel."""
    return (3 if _native("swiglu", dtype, device) else 4) * inner * dtype.itemsize


def _attention_bytes(
    config: ModelConfig, seq_len: int, dtype: torch.dtype, device: torch.device, documents: bool
) -> float:
    """Of one token in one layer: latents, queries, keys, values, result, and probabilities or a mask."""
    s, H = dtype.itemsize, config.num_attention_heads
    key = config.qk_head_dim
    if config.kv_lora_rank is None:
        groups, value, latents = config.num_key_value_heads, config.head_dim, 0
    else:
        groups, value = H, config.v_head_dim
        latents = _norm_bytes(config.kv_lora_rank, dtype, device)
        latents += _norm_bytes(config.q_lora_rank, dtype, device) if config.q_lora_rank is not None else 0
    form = _attention_choice(config, seq_len, dtype, device)
    if form == "native":
        # MLA's as its projections leave them, the turned key once for all heads; and a log-sum a head.
        own = config.qk_nope_head_dim if config.kv_lora_rank is not None else key
        shared = config.qk_rope_head_dim if config.kv_lora_rank is not None else 0
        return latents + (H * key + groups * (own + value) + shared + H * value) * s + 4 * H
    if form not in ("products", "reference", "grouped"):
        wide = max(key, value)  # keys and values padded to one width, the result too, and a log-sum a head
        scores = (2 * H + 2 * groups) * wide * s + 4 * H + H * value * s
        return latents + scores + (seq_len * s if documents and device.type != "cuda" else 0)
    return latents + (H * key + groups * key + groups * value + H * value + H * seq_len) * s


def _kda_bytes(
    config: ModelConfig, batch: int, seq_len: int, dtype: torch.dtype, device: torch.device, documents: bool
) -> float:
    """Of one token in one layer: what the recurrence and the operations around it keep, and the states in between."""
    linear = config.linear_attn_config
    if linear is None:
        return 0.0
    H, K, wide, s = linear.num_heads, linear.head_dim, linear.width, dtype.itemsize
    # Queries, keys and values before and behind their convolutions; the result, its gate, and both together.
    arrays = 9 * wide * s
    if _native("kda", dtype, device):
        decay, borders = (s + 4) * wide + 4 * H, 0  # what softplus is given, and fp32: the decay itself; beta
    else:
        decay = 3 * 4 * wide + 4 * H  # fp32: what softplus is given and gives, the decay itself; beta
        borders = 4 * 8 if documents else 0  # of documents, int64, for three convolutions and the recurrence
    span = SPAN if _native("delta", dtype, device) else segment_tokens(batch, H, K, device)
    return arrays + decay + borders + 2 * K * s + -(-seq_len // span) * 4 * wide * K / seq_len


def _attention_choice(config: ModelConfig, seq_len: int, dtype: torch.dtype, device: torch.device) -> str:
    """Which implementation training will take; asked of the chooser."""
    if device.type == "cuda":
        return "sdpa"
    value = config.head_dim if config.kv_lora_rank is None else config.v_head_dim
    shape = (1, config.num_attention_heads, seq_len)
    # One number, seen as many.
    q, v = (torch.empty(1, dtype=dtype).expand(*shape, w) for w in (config.qk_head_dim, value))
    return chosen("attention", attention.choose(q, q, v, 0))


def _expert_bytes(config: ModelConfig, tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """Of one token in one layer: the sorted copies with their padding, the router and the shared experts."""
    D, I, E, A = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts, config.num_experts_per_tok
    s, copies = dtype.itemsize, tokens * A
    pad = rows_to(copies, E)
    # ops/experts_native.py keeps room for the worst spread and only what the products read; the others keep more.
    native = available(torch.empty(0, dtype=dtype, device=device.type if device.type == "cpu" else "meta"))
    rows = (copies + min(E, copies) * (pad - 1) if native else copies + E * pad / 2) / tokens
    router = 4 * E + (0 if native else 4 * D if s < 4 else 0) + 16 * A
    shared = _swiglu_bytes(config.n_shared_experts * I, dtype, device)
    return rows * (D + (2 if native else 3) * I) * s + router + shared


def _loss_workspace(config: ModelConfig, tokens: int) -> int:
    """The logits of one chunk in fp32, twice, and the head's gradient (ops/loss.py)."""
    rows = min(tokens, max(64, 2**23 // config.vocab_size))
    return 2 * 4 * rows * config.vocab_size + 4 * config.vocab_size * config.hidden_size


def _muon_workspace(matrices: Mapping[str, Size], device: torch.device) -> int:
    """What orthogonalising holds of as many matrices of one shape as it takes at once."""
    counts = matrix_counts(matrices)
    at_once = (min(n, chunk(rows, columns, device)) * rows * columns for (rows, columns), n in counts.items())
    # fp32: the matrices joined, normed, and the result; bf16: the iterate before and after.
    return 16 * max(at_once, default=0)
