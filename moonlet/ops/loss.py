"""Cross-entropy of next tokens without ever holding [tokens, vocabulary] in fp32.

loss = mean_n ( logsumexp_v(h_n . W_v) - h_n . W_{target_n} ). `reference` forms every logit; `chunked` works on a few
rows at a time and, since d loss / d logits is known as soon as the logits are, takes both gradients in the forward.
`native` does so too, with all that lies between the products in one pass of a kernel, which leaves the gradient where
the logits were.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.ops.dispatch import implementation, register
from moonlet.ops.native.call import DTYPES, kernel, native_fits

IGNORE = -100  # a target that does not count


def cross_entropy(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Mean loss over the targets that count.

    Args:
        hidden: [N, D], compute dtype.
        weight: [V, D], the output head, any float dtype, cast to hidden's.
        target: int64 [N]; IGNORE entries do not count. None counting gives zero.

    Returns:
        fp32 scalar, in nats a token.
    """
    choice = "native" if native_fits("loss", hidden, weight) and not target.is_cuda else "chunked"
    return implementation("cross_entropy", choice)(hidden, weight.to(hidden.dtype), target)  # type: ignore[no-any-return]


@register("cross_entropy", "reference")
def reference(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """The law."""
    logits = F.linear(hidden, weight).float()  # (N, V)
    total = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
    return total / (target != IGNORE).sum().clamp(min=1)


@register("cross_entropy", "chunked")
def chunked(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """About 8M logits at a time; the hidden and head gradients are taken on the way."""
    return _Chunked.apply(hidden, weight, target, _in_steps)  # type: ignore[no-any-return,no-untyped-call]


@register("cross_entropy", "native")
def native(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """As `chunked`, but for the kernel."""
    return _Chunked.apply(hidden, weight, target, _in_one_pass)  # type: ignore[no-any-return,no-untyped-call]


def token_losses(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Loss of each target in nats, fp32 [N]; zero where the target is IGNORE. No gradient."""
    weight = weight.to(hidden.dtype)
    rows = _rows(weight)
    parts = []
    with torch.no_grad():
        for h, t in zip(hidden.split(rows), target.split(rows), strict=True):
            parts.append(F.cross_entropy(F.linear(h, weight).float(), t, ignore_index=IGNORE, reduction="none"))
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def _rows(weight: Tensor) -> int:
    return max(64, 2**23 // weight.shape[0])


class _Chunked(torch.autograd.Function):
    """`softmax` turns a chunk's logits into the sum of its losses and, where asked, the logits' gradient."""

    @staticmethod
    def forward(ctx, hidden, weight, target, softmax):  # type: ignore[no-untyped-def]
        count = (target != IGNORE).sum().clamp(min=1)
        need_h, need_w = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if need_h else None
        # Summed over chunks in fp32: the head's gradient is the sum of all tokens'.
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if need_w else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        rows = _rows(weight)
        # One chunk's memory serves all: pages that are new cost as much as the pass over them.
        buffer = hidden.new_empty(min(rows, hidden.shape[0]), weight.shape[0])
        for lo in range(0, hidden.shape[0], rows):
            h, t = hidden[lo : lo + rows], target[lo : lo + rows]
            logits = torch.mm(h, weight.t(), out=buffer[: h.shape[0]])  # (n, V)
            sum_of_losses, d = softmax(logits, t, count if need_h or need_w else None)
            total += sum_of_losses
            if d_hidden is not None:
                torch.mm(d, weight, out=d_hidden[lo : lo + rows])
            if d_weight is not None:
                d_weight += torch.mm(d.t(), h)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.dtype = weight.dtype
        return total / count

    @staticmethod
    def backward(ctx, d_loss):  # type: ignore[no-untyped-def]
        d_hidden, d_weight = ctx.saved_tensors
        d_hidden = None if d_hidden is None else d_hidden * d_loss.to(d_hidden.dtype)
        d_weight = None if d_weight is None else (d_weight * d_loss).to(ctx.dtype)
        return d_hidden, d_weight, None, None


def _in_steps(logits: Tensor, target: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """PyTorch's operators, in fp32. -> the sum of the losses, and d loss / d logits times 1 / count in logits' dtype"""
    wide = logits.float()  # (n, V)
    counts = target != IGNORE
    chosen = target.clamp(min=0)[:, None]
    log_z = torch.logsumexp(wide, -1)
    total = ((log_z - wide.gather(1, chosen)[:, 0]) * counts).sum()
    if count is None:
        return total, None
    d = wide.sub_(log_z[:, None]).exp_()  # softmax
    d.scatter_add_(1, chosen, d.new_full((), -1.0).expand(d.shape[0], 1))
    return total, d.mul_((counts / count)[:, None]).to(logits.dtype)


def _in_one_pass(logits: Tensor, target: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The same by the kernel, the gradient in logits' memory."""
    wrong = (target != IGNORE) & ((target < 0) | (target >= logits.shape[1]))
    if wrong.any():
        raise IndexError(f"target {int(target[wrong][0])} is out of bounds: there are {logits.shape[1]} logits")
    losses, target = torch.empty(len(target)), target.contiguous()
    factor = None if count is None else 1.0 / int(count)
    kernel("loss", f"loss_{DTYPES[logits.dtype]}")(
        *map(Tensor.data_ptr, (logits, target, losses)), *logits.shape, int(count is not None), factor or 0.0
    )
    return losses.sum(), None if factor is None else logits
