"""Where a model's weights lie, written down once in structures that the native step's kernel shares field by field.

Weights stay where and as they are. Those wider than the compute dtype, or not stored row by row, are copied once, here.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from moonlet.model.ffn import SwiGLU
from moonlet.model.gqa import GQA
from moonlet.model.kda import KDA
from moonlet.model.layer import Layer
from moonlet.model.linear import Linear, TiedHead
from moonlet.model.mla import MLA
from moonlet.model.model import CausalLM
from moonlet.model.moe import MoE
from moonlet.model.norm import LATENT_EPS
from moonlet.model.packed import PackedExperts
from moonlet.ops.low_bit_codes import Packed, Scheme

KINDS: dict[Scheme, int] = {"int4": 2, "mxfp4": 3}
"""Of packed experts; 0 is fp32, 1 bf16."""


def fields(kind: type, names: str) -> list[tuple[str, type]]:
    """Fields of one kind, for a structure."""
    return [(name, kind) for name in names.split()]


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        *fields(ctypes.c_int64, "rows columns kind"),
        ("scales", ctypes.c_void_p),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *fields(ctypes.c_int64, "mixer has_experts has_shared"),
        *fields(ctypes.c_void_p, "norm_mix norm_channels"),
        *fields(_Matrix, "q_a q kv kv_b v o"),
        *fields(ctypes.c_void_p, "q_norm kv_norm"),
        *fields(_Matrix, "f_a f_b g_a g_b beta"),
        *fields(ctypes.c_void_p, "taps rate dt_bias o_norm"),
        *fields(_Matrix, "gate up down router"),
        ("router_bias", ctypes.c_void_p),
        *fields(_Matrix, "expert_gate_up expert_down"),
    )


class Weights(ctypes.Structure):
    """`Model` of decode_model.hpp."""

    _fields_ = (
        *fields(ctypes.c_int64, "layers width vocabulary heads groups K P R V delta_heads delta_width delta_taps"),
        *fields(ctypes.c_int64, "experts active expert_groups top_groups softmax normalise"),
        *fields(ctypes.c_double, "routed_scale scale eps latent_eps"),
        ("layer", ctypes.POINTER(_Layer)),
        *fields(_Matrix, "embedding head"),
        ("norm", ctypes.c_void_p),
    )


class Plan:
    """The structures of a model."""

    def __init__(self, model: CausalLM) -> None:
        self.dtype = model.dtype
        self.kept: list[object] = []
        """The tensors they point into, which must outlive them."""
        self.bytes_read = 0
        """Bytes of weights that a step reads."""
        config = model.config
        linear = config.linear_attn_config
        layers = [self._layer(layer) for layer in model.model.layers if isinstance(layer, Layer)]
        latent = config.kv_lora_rank is not None
        read = self.bytes_read  # the embedding's row and the head's share of a tied one are not told apart
        embedding = self._matrix(model.model.embed_tokens.weight, widen=True)
        self.bytes_read = read
        self.weights = Weights(
            layers=len(layers),
            width=config.hidden_size,
            vocabulary=config.vocab_size,
            heads=config.num_attention_heads,
            groups=config.num_key_value_heads,
            K=config.qk_nope_head_dim if latent else config.head_dim,
            P=config.rope_width,
            R=config.kv_lora_rank or 0,
            V=config.v_head_dim,
            delta_heads=linear.num_heads if linear else 0,
            delta_width=linear.head_dim if linear else 0,
            delta_taps=linear.short_conv_kernel_size if linear else 0,
            experts=config.n_routed_experts,
            active=config.num_experts_per_tok,
            expert_groups=config.n_group,
            top_groups=config.topk_group,
            softmax=config.scoring_func == "softmax",
            normalise=config.norm_topk_prob,
            routed_scale=config.routed_scaling_factor,
            scale=config.softmax_scale,
            eps=config.rms_norm_eps,
            latent_eps=LATENT_EPS,
            layer=(_Layer * len(layers))(*layers),
            embedding=embedding,
            head=self._linear(model.lm_head),
            norm=self._numbers(model.model.norm.weight),
        )

    def _layer(self, layer: Layer) -> _Layer:
        out = _Layer(
            norm_mix=self._numbers(layer.input_layernorm.weight),
            norm_channels=self._numbers(layer.post_attention_layernorm.weight),
        )
        mix, mlp = layer.self_attn, layer.mlp
        if isinstance(mix, KDA):
            self._kda(out, mix)
        elif isinstance(mix, GQA):
            out.mixer = 1
            out.q, out.kv, out.v, out.o = map(self._linear, (mix.q_proj, mix.k_proj, mix.v_proj, mix.o_proj))
        else:
            self._mla(out, mix)
        if isinstance(mlp, MoE):
            self._moe(out, mlp)
        else:
            self._ffn(out, mlp)
        return out

    def _mla(self, out: _Layer, mla: MLA) -> None:
        if mla.query_is_low_rank:
            out.q_a, out.q = self._linear(mla.q_a_proj), self._linear(mla.q_b_proj)
            out.q_norm = self._numbers(mla.q_a_layernorm.weight)
        else:
            out.q = self._linear(mla.q_proj)
        out.kv, out.kv_b, out.o = map(self._linear, (mla.kv_a_proj_with_mqa, mla.kv_b_proj, mla.o_proj))
        out.kv_norm = self._numbers(mla.kv_a_layernorm.weight)

    def _kda(self, out: _Layer, kda: KDA) -> None:
        out.mixer = 2
        out.q, out.kv, out.v, out.o = map(self._linear, (kda.q_proj, kda.k_proj, kda.v_proj, kda.o_proj))
        out.f_a, out.f_b, out.g_a, out.g_b = map(self._linear, (kda.f_a_proj, kda.f_b_proj, kda.g_a_proj, kda.g_b_proj))
        out.beta = self._linear(kda.b_proj)
        filters = (kda.q_conv1d, kda.k_conv1d, kda.v_conv1d)
        out.taps = self._numbers(torch.cat([f.weight.detach().float()[:, 0] for f in filters]).t())  # (W, 3HK)
        out.rate = self._numbers(-kda.A_log.detach().float().exp())
        out.dt_bias, out.o_norm = self._numbers(kda.dt_bias), self._numbers(kda.o_norm.weight)

    def _moe(self, out: _Layer, moe: MoE) -> None:
        out.has_experts, out.has_shared = True, moe.has_shared
        out.router = self._matrix(moe.gate.weight, widen=True)
        out.router_bias = self._numbers(moe.gate.e_score_correction_bias)
        share = moe.gate.rule.active / len(moe.gate.weight)
        experts = moe.experts
        if isinstance(experts, PackedExperts):
            out.expert_gate_up, out.expert_down = (self._codes(w, share) for w in (experts.gate_up, experts.down))
        else:
            out.expert_gate_up = self._matrix(experts.gate_up_proj.flatten(0, 1), share)
            out.expert_down = self._matrix(experts.down_proj.flatten(0, 1), share)
        if moe.has_shared:
            self._ffn(out, moe.shared_experts)

    def _ffn(self, out: _Layer, ffn: SwiGLU) -> None:
        out.gate, out.up, out.down = map(self._linear, (ffn.gate_proj, ffn.up_proj, ffn.down_proj))

    def _linear(self, linear: Linear | TiedHead) -> _Matrix:
        return self._matrix(linear.weight)

    def _matrix(self, weight: Tensor, share: float = 1.0, widen: bool = False) -> _Matrix:
        """A matrix [out, in], of which a step reads `share`.

        Its numbers are rounded to the compute dtype where that is less precise, unless it is a matrix that the model
        reads in full precision (`widen`).
        """
        weight = weight.detach()
        if weight.dtype != torch.bfloat16:
            weight = weight.to(torch.float32 if widen else self.dtype)
        weight = weight.contiguous()
        self.kept.append(weight)
        self.bytes_read += int(weight.nbytes * share)
        rows, columns = weight.shape
        return _Matrix(weight.data_ptr(), rows, columns, weight.dtype == torch.bfloat16)

    def _codes(self, weight: Packed, share: float) -> _Matrix:
        """A stack of matrices in few bits, of which a step reads `share`, as one with all their rows."""
        codes, scale = weight.codes.contiguous(), weight.scale.contiguous()
        self.kept += codes, scale
        self.bytes_read += int(weight.nbytes * share)
        *rows, columns = weight.shape
        return _Matrix(codes.data_ptr(), math.prod(rows), columns, KINDS[weight.scheme], scale.data_ptr())

    def _numbers(self, values: Tensor) -> int:
        """Few numbers, as fp32 one after the other; where they lie."""
        values = values.detach().float().contiguous()
        self.kept.append(values)
        return values.data_ptr()
