"""The gated delta rule of Kimi delta attention (arXiv 2510.26692): a matrix a head that forgets, and corrects itself.

    S'  = Diag(e^g_t) S_{t-1}                    each key channel decays by itself, before anything is read
    S_t = S' + beta_t k_t (v_t - S'^T k_t)^T     what k_t recalls is moved towards v_t by beta_t
    o_t = scale S_t^T q_t

B batch, T time, H heads, K key width, V value width, S [K, V].
"""

from __future__ import annotations

import torch
from torch import Tensor

from moonlet.ops import delta_chunked, delta_native, fla  # noqa: F401 # delta_chunked registers itself
from moonlet.ops.dispatch import implementation, register

# So many tokens cost less one after the other than a chunk does.
_FEW = 4


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    state: Tensor | None = None,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over T tokens.

    Args:
        q: [B, T, H, K], any float dtype; normalised by the caller, as k is.
        k: [B, T, H, K], same dtype.
        v: [B, T, H, V], same dtype.
        g: [B, T, H, K], fp32 (or fp64), logarithm of the decay, at most 0.
        beta: [B, T, H], fp32 (or fp64), how far a value is corrected, 0..1.
        scale: of the queries; None: K^-1/2.
        state: [B, H, K, V], fp32 (or fp64), before the first token; None: zeros. It is not changed.
        documents: int64 [B, T], which document each token belongs to; a token that belongs to another document than
            the one before it begins from zeros. The first token continues `state`. None: one document a row.

    Returns:
        o [B, T, H, V] in q's dtype, and the state after the last token, [B, H, K, V] in g's dtype.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    run = implementation("delta_rule", choose(q, v, g, documents))
    return run(q, k, v, g, beta, scale, state, documents)  # type: ignore[no-any-return]


def choose(q: Tensor, v: Tensor, g: Tensor, documents: Tensor | None) -> str:
    """What suits these inputs: fla's kernels on a GPU, ours on a CPU, else chunks; few tokens go one by one."""
    if fla.fits(q, v, g, documents):
        return "fla"
    if q.shape[1] <= _FEW:
        return "reference"
    return "native" if delta_native.fits(q, v, g, documents) else "chunked"


def delta_step(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, *, scale: float | None = None
) -> Tensor:
    """One token of the recurrence, the state changed in place; no gradient.

    Args:
        q, k, v, g, beta: as in `delta_rule`, without the axis T.
        state: [B, H, K, V], fp32; may be a view.

    Returns:
        o [B, H, V] in q's dtype.
    """
    B, H, K, V = state.shape
    scale = K**-0.5 if scale is None else scale
    S = state.reshape(B * H, K, V)
    S *= g.exp().reshape(B * H, K, 1)
    x = torch.stack([k, q], 2).to(S.dtype).view(B * H, 2, K)
    recalled = torch.bmm(x, S)  # (BH, 2, V): the state is read once, for key and query
    error = v.to(S.dtype).reshape(B * H, 1, V) - recalled[:, :1]
    written = x[:, :1] * beta.reshape(B * H, 1, 1)
    S.baddbmm_(written.mT, error)
    if S.data_ptr() != state.data_ptr():  # the view's rows do not follow one another
        state.copy_(S.view_as(state))
    # The query meets what was just written: S_t^T q = S'^T q + (beta k . q) error.
    own = torch.bmm(x[:, 1:], written.mT)
    return torch.baddbmm(recalled[:, 1:], own, error, beta=scale, alpha=scale).view(B, H, V).to(q.dtype)


@register("delta_rule", "reference")
def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float,
    state: Tensor | None = None,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The law: one token after the other, in the dtype of g."""
    B, T, H, K = q.shape
    dtype = g.dtype
    S = g.new_zeros(B, H, K, v.shape[-1]) if state is None else state.to(dtype)
    out = []
    for t in range(T):
        if documents is not None and t:
            S = S * (documents[:, t] == documents[:, t - 1]).to(dtype)[:, None, None, None]
        q_t, k_t, v_t = (x[:, t].to(dtype) for x in (q, k, v))  # (B, H, K), (B, H, K), (B, H, V)
        S = S * g[:, t, :, :, None].exp()
        error = v_t - torch.einsum("bhkv,bhk->bhv", S, k_t)
        S = S + (beta[:, t, :, None] * k_t)[..., None] * error[..., None, :]
        out.append(torch.einsum("bhkv,bhk->bhv", S, q_t * scale))
    return torch.stack(out, 1).to(q.dtype), S
