"""llama.cpp's tensors: which there are, and what of which official tensor goes where.

One official tensor becomes one of llama.cpp's, but for these:

| here | there |
|---|---|
| `kv_b_proj` [H(K+V), R] | `attn_k_b` [H, R, K], which works on the query, and `attn_v_b` [H, V, R], on the output |
| an expert's gate, up, down | one slice each of `ffn_{gate,up,down}_exps` [E, out, in] |
| `A_log` | `ssm_a` = -exp(A_log) |
| a tied embedding | with kimi-linear also `output`, which there must be |

llama.cpp has one eps for all norms, where the latents of MLA have 1e-6 always (specs: trap 1). As norm(s x; s^2 eps) =
norm(x; eps), the rows that make a latent are multiplied by s = sqrt(eps / 1e-6): exactly in fp32, and in narrower types
by the nearest power of two, which changes no bit of a weight and the eps to 6e-7 at most for the published 1e-5.

It also has one number of heads for KDA and for MLA. Where they differ the smaller gets heads of zeros, which compute
nothing; and a model without shared expert gets one of zeros.

So what goes where follows from the configuration alone, and official tensors may come in any order, one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.config import ModelConfig
from moonlet.hub.names import EMBEDDING, HEAD, layout_of
from moonlet.hub.packed import BUFFER, packed_weights
from moonlet.model.model import CausalLM
from moonlet.model.norm import LATENT_EPS

_PLAIN = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_conv1d": "ssm_conv1d_q",
    "self_attn.k_conv1d": "ssm_conv1d_k",
    "self_attn.v_conv1d": "ssm_conv1d_v",
    "self_attn.f_a_proj": "ssm_f_a",
    "self_attn.f_b_proj": "ssm_f_b",
    "self_attn.b_proj": "ssm_beta",
    "self_attn.g_a_proj": "ssm_g_a",
    "self_attn.g_b_proj": "ssm_g_b",
    "self_attn.o_norm": "ssm_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
_OUTER = {EMBEDDING: "token_embd", "model.norm.weight": "output_norm", HEAD: "output"}

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """What an official tensor gives one of llama.cpp's: the whole of it, or of a stack the slice `index`."""

    target: str
    change: Change
    index: int | None = None


@dataclass
class Plan:
    """Everything in a file: shapes of llama.cpp's tensors by name, in its order, and what each official tensor gives.

    officials: the shape of each official tensor.
    parts: what it becomes. A tensor of llama.cpp's that no part fills is all zeros.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    officials: dict[str, tuple[int, ...]] = field(default_factory=dict)
    parts: dict[str, list[Part]] = field(default_factory=dict)

    def add(self, official: str, target: str, like: Tensor, change: Change) -> None:
        """One official tensor, of the shape of `like`, a meta tensor, as one of llama.cpp's."""
        self.shapes[target] = tuple(change(like).shape)
        self.officials[official] = tuple(like.shape)
        self.parts.setdefault(official, []).append(Part(target, change))


def plan(config: ModelConfig, exact: bool) -> Plan:
    """What a file of a model with this configuration holds.

    Args:
        exact: whether it keeps fp32, and with it any factor.
    """
    with torch.device("meta"):
        model = CausalLM(config)
        return _Planner(config, exact).run(model)


class _Planner:
    def __init__(self, config: ModelConfig, exact: bool) -> None:
        self.config = config
        self.layout = layout_of(config)
        self.linear = config.linear_attn_config
        factor = math.sqrt(config.rms_norm_eps / LATENT_EPS)
        self.stretch = factor if exact else 2.0 ** round(math.log2(factor))
        self.heads = config.num_attention_heads
        if self.linear is not None:
            self.heads = max(self.heads, self.linear.num_heads)
        self.out = Plan()

    def run(self, model: CausalLM) -> Plan:
        for name, value in model.state_dict().items():
            if name in _OUTER:
                self.out.add(name, f"{_OUTER[name]}.weight", value, _same)
                continue
            _, _, layer, rest = name.split(".", 3)
            block = f"blk.{layer}"
            if rest.startswith("mlp.experts."):
                self._experts(name, block, value)
                continue
            ((official, _),) = self.layout.split(name, value)
            if rest == "self_attn.kv_b_proj.weight":
                self.out.add(official, f"{block}.attn_k_b.weight", value, self._key_half)
                self.out.add(official, f"{block}.attn_v_b.weight", value, self._value_half)
            else:
                self.out.add(official, *self._one(block, rest, int(layer), value))
        if self.config.tie_word_embeddings and self.linear is not None:
            head = model.model.embed_tokens.weight
            self.out.add(EMBEDDING, "output.weight", head, _same)
        self._shared_of_zeros()
        return self.out

    def _one(self, block: str, rest: str, layer: int, value: Tensor) -> tuple[str, Tensor, Change]:
        """Name and change of a tensor that stays one."""
        if rest == "mlp.gate.e_score_correction_bias":
            return f"{block}.exp_probs_b.bias", value, _same
        if rest == "self_attn.dt_bias":
            return f"{block}.ssm_dt.bias", value, self._grown(self._kda_width)
        if rest == "self_attn.A_log":
            heads = self._grown(self.heads)
            return f"{block}.ssm_a", value, lambda a: heads(-a.float().exp().flatten()).view(1, 1, -1, 1)
        part = rest.removesuffix(".weight")
        target = f"{block}.{_PLAIN[part]}.weight"
        if part == "self_attn.q_a_proj":
            return target, value, self._stretched(None)
        if part == "self_attn.kv_a_proj_with_mqa":
            # The rows behind the latent's make k_rope, which has no norm.
            return target, value, self._stretched(self.config.kv_lora_rank)
        if part.startswith("self_attn.") and self.linear is not None:
            return target, value, self._with_all_heads(part.removeprefix("self_attn."), layer)
        return target, value, _same

    def _with_all_heads(self, part: str, layer: int) -> Change:
        """A tensor of kimi-linear's attentions with heads of zeros behind its own."""
        config, kda = self.config, self.config.is_kda(layer)
        if part == "o_proj":
            columns = self._kda_width if kda else self.heads * config.v_head_dim
            return lambda w: F.pad(w, (0, columns - w.shape[1]))
        if part in ("f_b_proj", "g_b_proj") or (kda and part in ("q_proj", "k_proj", "v_proj")):
            return self._grown(self._kda_width)
        if part.endswith("_conv1d"):
            grown = self._grown(self._kda_width)
            return lambda w: grown(w.flatten(1)).view(1, -1, 1, w.shape[-1])
        if part == "b_proj":
            return self._grown(self.heads)
        if part == "q_proj":
            return self._grown(self.heads * config.qk_head_dim)
        return _same

    @property
    def _kda_width(self) -> int:
        assert self.linear is not None
        return self.heads * self.linear.head_dim

    def _experts(self, name: str, block: str, stack: Tensor) -> None:
        E, official = stack.shape[0], self.layout.split(name, stack)
        roles = ("down",) if name.endswith("down_proj") else ("gate", "up")
        for e in range(E):
            for role in roles:
                disk, part = next(official)
                target = f"{block}.ffn_{role}_exps.weight"
                self.out.shapes[target] = (E, *part.shape)
                self.out.officials[disk] = tuple(part.shape)
                self.out.parts[disk] = [Part(target, _same, e)]

    def _shared_of_zeros(self) -> None:
        config = self.config
        if config.n_shared_experts or not config.n_routed_experts:
            return
        D, width = config.hidden_size, config.moe_intermediate_size
        for layer in filter(config.is_moe, range(config.num_hidden_layers)):
            for role, shape in (("gate", (width, D)), ("up", (width, D)), ("down", (D, width))):
                self.out.shapes[f"blk.{layer}.ffn_{role}_shexp.weight"] = shape

    def _stretched(self, rows: int | None) -> Change:
        """With the first `rows`, which make a latent, times `stretch`."""
        if self.stretch == 1:
            return _same
        return lambda w: torch.cat((w[:rows].float() * self.stretch, w[w.shape[0] if rows is None else rows :].float()))

    def _per_head(self, w: Tensor) -> Tensor:
        """W_kvb as [H, K+V, R]"""
        return F.pad(
            w.view(self.config.num_attention_heads, -1, w.shape[1]),
            (0, 0, 0, 0, 0, self.heads - self.config.num_attention_heads),
        )

    def _key_half(self, w: Tensor) -> Tensor:
        return self._per_head(w)[:, : self.config.qk_nope_head_dim].transpose(1, 2)  # (H, R, K)

    def _value_half(self, w: Tensor) -> Tensor:
        return self._per_head(w)[:, self.config.qk_nope_head_dim :]  # (H, V, R)

    @staticmethod
    def _grown(rows: int) -> Change:
        """With rows of zeros behind, up to `rows` of them."""
        return lambda w: F.pad(w, (0,) * (2 * w.dim() - 1) + (rows - w.shape[0],))


def _same(w: Tensor) -> Tensor:
    return w


def official_tensors(model: CausalLM) -> Iterator[tuple[str, Tensor]]:
    """A model in memory, a tensor at a time, under the official names; experts are views of their stacks, and packed
    ones are multiplied out, in fp32."""
    layout = layout_of(model.config)
    for name, value in model.state_dict().items():
        if not BUFFER.match(name):
            yield from layout.split(name, value.detach())
    for name, packed in packed_weights(layout, model):
        yield name, packed.dequantize()
