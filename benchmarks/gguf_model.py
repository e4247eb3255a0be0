"""A moonlet model as a GGUF file that llama.cpp runs: architecture `deepseek2`, the same weights, for benchmarks.

llama.cpp reads MLA in its absorbed form, as one key head that all query heads share: kv_b_proj is split by head into
what works on the query, `attn_k_b` [H, R, K], and what works on the output, `attn_v_b` [H, V, R]. Experts are stacked,
gate and up apart. The file holds no tokenizer: a benchmark speaks in token ids.

Needs the package `gguf` (pip install gguf).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch import Tensor

from moonlet.model.model import CausalLM

TYPES = ("F32", "BF16", "Q8_0", "Q4_0")
# Layer counts by which llama.cpp recognises models whose query has no low rank, whatever the file says.
_TAKEN = (26, 27)

_PLAIN = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.q_proj": "attn_q",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
_OUTER = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}


def write_gguf(model: CausalLM, file: Path, kind: str = "BF16") -> Path:
    """Write `model` to `file` and return it.

    Args:
        kind: of matrices, one of TYPES; vectors and routers are fp32.

    Raises:
        ImportError: the package gguf is missing.
        ValueError: an unknown kind, or a model that is no MLA mixture with rope, for which llama.cpp has no such form.
    """
    import gguf

    if kind not in TYPES:
        raise ValueError(f"GGUF type {kind!r} is unknown; valid: {', '.join(TYPES)}")
    check(model)
    writer = gguf.GGUFWriter(str(file), "deepseek2")
    _describe(writer, model, gguf.ExpertGatingFuncType[model.config.scoring_func.upper()])
    matrix = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors(model):
        data = tensor.detach().float().contiguous().numpy()
        exact = tensor.dim() == 1 or "ffn_gate_inp" in name
        stored = gguf.GGMLQuantizationType.F32 if exact else matrix
        writer.add_tensor(name, gguf.quants.quantize(data, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def check(model: CausalLM) -> None:
    """Raise ValueError where llama.cpp's form would compute something else."""
    config = model.config
    problems = {
        "grouped-query attention": config.kv_lora_rank is None,
        "KDA": config.linear_attn_config is not None,
        "attention without rope": config.mla_use_nope,
        "rope scaling": config.rope_scaling is not None,
        "a tied head": config.tie_word_embeddings,
        "groups of experts": config.n_group > 1,
        "dense layers between those with experts": config.moe_layer_freq != 1,
        "no experts": not config.n_routed_experts,
        "no shared expert": not config.n_shared_experts,
        f"{config.num_hidden_layers} layers": config.num_hidden_layers in _TAKEN,
        "norms whose eps is not 1e-6, that of the latents": config.rms_norm_eps != 1e-6,
    }
    if found := [what for what, there in problems.items() if there]:
        raise ValueError(f"this model has {found[0]}, which this GGUF writer leaves out")


def tensors(model: CausalLM) -> Iterator[tuple[str, Tensor]]:
    """llama.cpp's tensors by name, each as it is stored: rows [..., out, in]."""
    config = model.config
    R, K = config.kv_lora_rank, config.qk_nope_head_dim
    for name, tensor in model.state_dict().items():
        if name in _OUTER:
            yield f"{_OUTER[name]}.weight", tensor
            continue
        _, _, layer, rest = name.split(".", 3)
        block, (part, _, last) = f"blk.{layer}", rest.rpartition(".")
        if rest == "self_attn.kv_b_proj.weight":
            heads = tensor.view(config.num_attention_heads, -1, R)  # (H, K+V, R)
            yield f"{block}.attn_k_b.weight", heads[:, :K].transpose(1, 2)  # (H, R, K)
            yield f"{block}.attn_v_b.weight", heads[:, K:]  # (H, V, R)
        elif rest == "mlp.experts.gate_up_proj":
            gate, up = tensor.chunk(2, 1)  # (E, I, D) each
            yield f"{block}.ffn_gate_exps.weight", gate
            yield f"{block}.ffn_up_exps.weight", up
        elif rest == "mlp.experts.down_proj":
            yield f"{block}.ffn_down_exps.weight", tensor
        elif rest == "mlp.gate.e_score_correction_bias":
            yield f"{block}.exp_probs_b.bias", tensor
        else:
            assert last == "weight", name
            yield f"{block}.{_PLAIN[part]}.weight", tensor


def _describe(writer: Any, model: CausalLM, gating: Any) -> None:
    """The numbers that llama.cpp builds its graph from."""
    c = model.config
    writer.add_name("moonlet")
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(1)  # absorbed: all heads attend to the latent
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_rope_dimension_count(c.qk_rope_head_dim)
    if c.q_lora_rank is not None:
        writer.add_q_lora_rank(c.q_lora_rank)
    writer.add_kv_lora_rank(c.kv_lora_rank)
    writer.add_key_length(c.kv_lora_rank + c.qk_rope_head_dim)
    writer.add_value_length(c.kv_lora_rank)
    writer.add_key_length_mla(c.qk_head_dim)
    writer.add_value_length_mla(c.v_head_dim)
    writer.add_leading_dense_block_count(c.first_k_dense_replace)
    writer.add_expert_count(c.n_routed_experts)
    writer.add_expert_used_count(c.num_experts_per_tok)
    writer.add_expert_shared_count(c.n_shared_experts)
    writer.add_expert_feed_forward_length(c.moe_intermediate_size)
    writer.add_expert_weights_scale(c.routed_scaling_factor)
    writer.add_expert_weights_norm(c.norm_topk_prob)
    writer.add_expert_gating_func(gating)
