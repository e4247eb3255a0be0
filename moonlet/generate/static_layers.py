"""A layer's part of the static step: one token a row, no shape that depends on what is decoded.

    attention   x -> q, entry -> [ entry into its block; attend over a table of blocks ] -> u -> x
    KDA         x -> [ state and inputs change in place, of live rows alone ] -> x
    channels    x -> x, experts without asking which were chosen

Attention is absorbed where it has latents (model/mla.py), and works in pieces of C positions whose sums are added up as
a tree, so that further pieces, of which a row sees nothing, add exact zeros. What a row does not see is replaced before
it is used: not multiplied by zero, for 0 NaN = NaN.

On a CPU PyTorch computes the last few elements of a tensor by other functions than the rest, with other last bits; of
those used here (products, sums, exp, log1p, square roots) that is not so. So SiLU and its like are written out.

R rows of x, T of them texts (the rest fills up; see static_step.py), n pieces of C positions; others as in model/.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.model.cache import KeyValueCache, LatentCache
from moonlet.model.gqa import GQA
from moonlet.model.kda import KDA
from moonlet.model.layer import Layer
from moonlet.model.linear import Linear
from moonlet.model.mla import MLA
from moonlet.model.moe import Experts, MoE
from moonlet.model.packed import PackedExperts
from moonlet.model.rope import Rotation, rotate, rotate_halves
from moonlet.ops import experts_grouped
from moonlet.ops.low_bit import gathered
from moonlet.ops.route import pick
from moonlet.ops.short_conv import L2_EPS
from moonlet.ops.tiles import arithmetic

_PACKED_AT_ONCE = 64  # experts that are dequantised together, counting each as often as it was chosen


def queries(layer: Layer, x: Tensor, turn: Rotation | None) -> tuple[Tensor, Tensor]:
    """What an attention layer reads from x [R, D].

    Args:
        turn: cos and sin of each row's position, [R, 1, P/2].

    Returns:
        Queries [R, G, H/G, W], and what is to be cached, [R, 1, W] of latents or [2, R, G, W] of keys and values.
    """
    mix, R = layer.self_attn, x.shape[0]
    x = layer.input_layernorm(x)[:, None]  # (R, 1, D)
    if isinstance(mix, GQA):
        assert turn is not None
        q, k = (w(x).view(R, 1, -1, mix.K) for w in (mix.q_proj, mix.k_proj))
        q, k = rotate_halves(q, turn), rotate_halves(k, turn)  # (R, 1, H, K), (R, 1, G, K)
        new = torch.stack((k[:, 0], mix.v_proj(x).view(R, -1, mix.K)))
        return q.view(R, mix.groups, -1, mix.K), new
    assert isinstance(mix, MLA)
    q, latent, k_rope = mix.latents(x)
    q_nope, q_rope = q.split((mix.K, mix.P), -1)
    if mix.turns:
        assert turn is not None
        q_rope, k_rope = rotate(q_rope, turn), rotate(k_rope[:, :, None], turn)[:, :, 0]
    q_latent = torch.bmm(q_nope[:, 0].transpose(0, 1), _halves(mix, x.dtype)[0]).transpose(0, 1)  # (R, H, latent)
    return torch.cat((q_latent, q_rope[:, 0]), -1)[:, None], torch.cat((latent, k_rope), -1)


def attend(
    mix: MLA | GQA, cache: LatentCache | KeyValueCache, q: Tensor, new: Tensor, tables: Tensor, at: Tensor, C: int
) -> Tensor:
    """Write T texts' entries and attend to all that each holds.

    Args:
        q, new: as `queries` returns them; rows beyond T are not looked at.
        tables: blocks, int64 [T, n C / block]; any that exist where a row holds nothing.
        at: position of each row's token, int64 [T].
        C: positions in a piece, whole blocks.

    Returns:
        [R, H, V], V the latents' width R where there are latents; zeros beyond T.
    """
    R, T, entries = len(q), len(at), cache.entries
    block = entries.shape[-2]
    own, place = tables.gather(1, (at // block)[:, None])[:, 0], at % block
    hidden = torch.arange(tables.shape[1] * block, device=at.device) > at[:, None]  # (T, n C)
    G, n = q.shape[1], hidden.shape[1] // C
    if isinstance(cache, LatentCache):
        assert isinstance(mix, MLA)
        entries[own, place] = new[:T, 0]
        keys = entries[tables].view(T * n, C, -1)
        keys = keys.masked_fill(hidden.view(T * n, C, 1), 0.0)
        values = keys[..., : mix.R]
    else:
        entries[:, own, :, place] = new[:, :T].transpose(0, 1)  # (T, 2, G, K)
        seen = entries[:, tables].unflatten(2, (n, -1))  # (2, T, n, blocks, G, block, K)
        seen = seen.transpose(3, 4).reshape(2, T * n, G, C, -1)
        keys, values = seen.masked_fill(hidden.view(T * n, 1, C, 1), 0.0).flatten(1, 2)  # (T n G, C, K)
    wide = arithmetic(q.dtype)
    asked = q[:T, None].expand(-1, n, -1, -1, -1).reshape(T * n * G, *q.shape[2:])
    logits = torch.bmm(asked, keys.mT).to(wide).view(T, n, G, -1, C) * mix.scale  # (T, n, G, H/G, C)
    logits = logits.masked_fill(hidden.view(T, n, 1, 1, C), float("-inf"))
    p = (logits - logits.amax((1, 4), True)).exp()  # every row sees its own token
    u = torch.bmm(p.to(q.dtype).flatten(0, 2), values).to(wide).view(T, n, G, p.shape[3], -1)
    out = (_added(u) / _added(p.sum(-1, keepdim=True))).to(q.dtype).flatten(1, 2)  # (T, H, V)
    return F.pad(out, (0, 0, 0, 0, 0, R - T))


def attended(layer: Layer, x: Tensor, u: Tensor) -> Tensor:
    """x [R, D] plus what an attention layer makes of what it saw, u [R, H, V]."""
    mix = layer.self_attn
    if isinstance(mix, MLA):
        u = torch.bmm(u.transpose(0, 1), _halves(mix, x.dtype)[1].mT).transpose(0, 1)  # (R, H, V)
    assert isinstance(mix, MLA | GQA)
    out: Tensor = x + mix.o_proj(u.reshape(len(x), -1))
    return out


def recur(layer: Layer, x: Tensor, state: Tensor, inputs: Tensor, live: Tensor) -> Tensor:
    """x [R, D] plus what KDA makes of it.

    Args:
        state: [T, H, K, V], changed in place; inputs: [T, W-1, 3HK], too.
        live: bool [T], rows that are decoded; what the others hold stays, and is not part of any other row.
    """
    kda, R, T = layer.self_attn, len(x), len(live)
    assert isinstance(kda, KDA)
    H, K, wide = kda.heads, kda.K, state.dtype
    read = layer.input_layernorm(x)
    new = torch.cat([w(read) for w in (kda.q_proj, kda.k_proj, kda.v_proj)], -1)[:T]  # (T, 3HK)
    seen = torch.cat((inputs, new[:, None]), 1)  # (T, W, 3HK)
    inputs.copy_(torch.where(live[:, None, None], seen[:, 1:], inputs))
    filters = (kda.q_conv1d, kda.k_conv1d, kda.v_conv1d)
    taps = torch.cat([f.weight.to(wide)[:, 0] for f in filters]).t()  # (W, 3HK)
    y = sum((seen[:, i].to(wide) * taps[i] for i in range(1, len(taps))), seen[:, 0].to(wide) * taps[0])
    qk, v = _silu(y).view(T, 3, H, K).split((2, 1), 1)
    qk = qk / (qk.square().sum(-1, keepdim=True) + L2_EPS).sqrt()
    q, k, v = torch.cat((qk, v), 1).to(x.dtype).to(wide).unbind(1)  # (T, H, K) each
    f = kda.f_b_proj(kda.f_a_proj(read))[:T].to(wide) + kda.dt_bias
    softplus = f.clamp(min=0) + torch.log1p((-f.abs()).exp())
    decay = (softplus.view(T, H, K) * -kda.A_log.exp().view(H, 1)).exp()
    o = _delta(q * K**-0.5, k, v, decay, _sigmoid(kda.b_proj(read)[:T].to(wide)), state, live)
    o = o.to(x.dtype).to(wide)
    normed = o / (o.square().mean(-1, keepdim=True) + kda.o_norm.eps).sqrt() * kda.o_norm.weight
    gate = _sigmoid(kda.g_b_proj(kda.g_a_proj(read))[:T].to(wide))
    out = (normed.flatten(1) * gate).to(x.dtype)  # (T, HV)
    mixed: Tensor = x + kda.o_proj(F.pad(out, (0, 0, 0, R - T)))
    return mixed


def _delta(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor, live: Tensor) -> Tensor:
    """The delta rule of ops/delta.py for one token, q being scaled. A row that is not live multiplies its state by one
    and adds zero. -> o [T, H, V]"""
    T, H, K, V = state.shape
    on = live[:, None, None]
    S = state.view(T * H, K, V)
    S.mul_(torch.where(on, decay, 1.0).view(T * H, K, 1))
    both = torch.stack((k, q), 2).view(T * H, 2, K)
    recalled = torch.bmm(both, S).view(T, H, 2, V)  # the state is read once, for key and query
    error = torch.where(on, v - recalled[:, :, 0], 0.0)
    written = torch.where(on, k * beta[..., None], 0.0)
    S.baddbmm_(written.view(T * H, K, 1), error.view(T * H, 1, V))
    # The query meets what was just written.
    return recalled[:, :, 1] + (q * written).sum(-1, keepdim=True) * error


def channels(layer: Layer, x: Tensor) -> Tensor:
    """x [R, D] plus what its feed-forward part makes of it."""
    read, mlp = layer.post_attention_layernorm(x), layer.mlp
    if not isinstance(mlp, MoE):
        return x + _swiglu(read, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    router = mlp.gate
    logits = F.linear(read.float(), router.weight.float())
    scores = logits.softmax(-1) if router.rule.softmax else _sigmoid(logits)
    index, weight = pick(scores, router.e_score_correction_bias, router.rule)
    y = _experts(mlp.experts, read, index, weight)
    if mlp.has_shared:
        shared = mlp.shared_experts
        y = y + _swiglu(read, shared.gate_proj, shared.up_proj, shared.down_proj)
    return x + y


def _experts(experts: Experts | PackedExperts, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Each row's experts, index int64 and weight fp32 [R, A]. -> [R, D]"""
    (R, A), E = index.shape, len(experts.down_packed if isinstance(experts, PackedExperts) else experts.down_proj)
    if isinstance(experts, PackedExperts):
        few = max(1, _PACKED_AT_ONCE // A)
        parts = zip(x.split(few), index.split(few), weight.split(few), strict=True)
        return torch.cat([gathered(rows, experts.gate_up, experts.down, i, w) for rows, i, w in parts])
    gate_up, down = experts.gate_up_proj.to(x.dtype), experts.down_proj.to(x.dtype)
    if experts_grouped.suits(x, gate_up):
        return experts_grouped.grouped_experts(x, gate_up, down, index, weight)
    if R * A < E:
        # Fewer than there are: read those that were chosen, as often as they were.
        flat = index.flatten()
        h = torch.bmm(gate_up[flat], x.repeat_interleave(A, 0)[..., None])[..., 0]  # (R A, 2I)
        out = torch.bmm(down[flat], _gated(h)[..., None]).view(R, A, -1)
    else:
        # Nearly all are chosen by some row, so all are read, once.
        h = F.linear(x, gate_up.flatten(0, 1)).view(R, E, -1)  # (R, E, 2I)
        every = torch.bmm(_gated(h).transpose(0, 1), down.mT)  # (E, R, D)
        out = every[index, torch.arange(R, device=x.device)[:, None]]  # (R, A, D)
    return torch.bmm(weight.to(x.dtype)[:, None], out)[:, 0]


def _halves(mla: MLA, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """W_kvb's key half [H, K, latent] and its value half [H, V, latent]."""
    w = mla.kv_b_proj.weight.to(dtype).view(mla.heads, mla.K + mla.V, mla.R)
    return w[:, : mla.K], w[:, mla.K :]


def _added(x: Tensor) -> Tensor:
    """The sum over axis 1, whose size is a power of two, as a tree: zeros behind change no bit."""
    while x.shape[1] > 1:
        x = x[:, ::2] + x[:, 1::2]
    return x[:, 0]


def _swiglu(x: Tensor, gate: Linear, up: Linear, down: Linear) -> Tensor:
    out: Tensor = down(_silu(gate(x)) * up(x))
    return out


def _gated(h: Tensor) -> Tensor:
    """silu(gate) up of [..., 2I] -> [..., I]"""
    gate, up = h.chunk(2, -1)
    return _silu(gate) * up


def _silu(x: Tensor) -> Tensor:
    h = x.to(arithmetic(x.dtype))
    return (h / (1 + (-h).exp())).to(x.dtype)


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())
