"""The parts of a training step as named ranges of torch.profiler, laid around the code from outside.

Inside `marked` every module, operation and stage of a step that has a name here runs in a range of that name; within
one range others may lie, and time belongs to the innermost. Nothing that is marked knows of it: ranges hang on module
hooks, on the table of implementations in `ops.dispatch` and on a few methods, and all of them are gone when the block
ends. They read nothing and change nothing, so a marked step gives the bits of an unmarked one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from torch import nn
from torch.profiler import record_function

from moonlet.model.gqa import GQA
from moonlet.model.kda import KDA, GatedNorm
from moonlet.model.linear import Linear
from moonlet.model.mla import MLA
from moonlet.model.model import CausalLM
from moonlet.model.moe import MoE
from moonlet.model.norm import RMSNorm
from moonlet.model.peaks import LogitPeaks
from moonlet.ops.dispatch import wrapped
from moonlet.optim.adamw import AdamW
from moonlet.optim.muon import Muon
from moonlet.train import casts, step

STEP = "train step"

LOADING = "loading the batch"
CASTS = "casting the weights"
EMBEDDING = "embedding"
NORMS = "norms"
RESIDUAL = "residual stream"
KDA_PROJECTIONS = "KDA: projections"
KDA_CONVOLUTION = "KDA: short convolution"
KDA_DELTA = "KDA: delta rule"
KDA_NORM = "KDA: gated norm"
KDA_REST = "KDA: decay and layout"
ROUTER = "router"
EXPERTS = "experts"
SHARED = "shared experts"
DENSE = "dense"
HEAD = "head and loss"
CLIPPING = "gradient clipping"
NEWTON_SCHULZ = "Muon: Newton-Schulz"
MUON = "Muon: momentum, update"
ADAMW = "AdamW"
QK_CLIP = "QK-Clip"
BALANCE = "expert balance"
REST = "everything else"

_ATTENTION = tuple(
    f"{kind}: {what}" for kind in ("MLA", "GQA") for what in ("projections", "attention", "rope and layout")
)

# In the order in which a step meets them.
PARTS = (
    LOADING, CASTS, EMBEDDING, NORMS, *_ATTENTION, KDA_PROJECTIONS, KDA_CONVOLUTION, KDA_DELTA, KDA_NORM, KDA_REST,
    ROUTER, EXPERTS, SHARED, DENSE, RESIDUAL, HEAD, CLIPPING, NEWTON_SCHULZ, MUON, ADAMW, QK_CLIP, BALANCE, REST,
)  # fmt: skip
OPTIMIZERS = frozenset({MUON, ADAMW})

_Function = Callable[..., Any]


@contextmanager
def marked(model: CausalLM, batches: type, compiled: bool = False) -> Iterator[None]:
    """Lay the ranges around `model`, its optimizer and the stages of `train_step`.

    Args:
        batches: the class whose method `batch` reads what is trained on.
        compiled: whether regions are (train/compile.py); nothing within one has a range of its own then.
    """
    with ExitStack() as stack:
        for module, part in module_parts(model):
            stack.enter_context(_around_module(module, part))
        kind = "GQA" if model.config.kv_lora_rank is None else "MLA"
        operations = {
            "attention": f"{kind}: attention", "latent_attention": "MLA: attention", "delta_rule": KDA_DELTA,
            "short_conv": KDA_CONVOLUTION, "newton_schulz": NEWTON_SCHULZ,
        }  # fmt: skip
        for op, part in operations.items():
            stack.enter_context(wrapped(op, lambda function, part=part: ranged(function, part)))  # type: ignore[misc]
        stages: list[tuple[Any, str, str]] = [
            (batches, "batch", LOADING), (CausalLM, "loss", HEAD), (CausalLM, "hidden", RESIDUAL),
            (LogitPeaks, "see", QK_CLIP), (step, "track_logits", QK_CLIP), (step, "qk_clip", QK_CLIP),
            (step, "balance_step", BALANCE), (casts, "copies_of", CASTS), (Muon, "step", MUON), (AdamW, "step", ADAMW),
        ]  # fmt: skip
        if compiled:
            stages += [(MLA, "projected", "MLA: projections"), (GQA, "projected", "GQA: projections")]
            stages += [(KDA, "_log_decay", KDA_PROJECTIONS)]
        for owner, name, part in stages:
            stack.enter_context(_around_attribute(owner, name, part))
        yield


def module_parts(model: CausalLM) -> Iterator[tuple[nn.Module, str]]:
    """Every module that is a part by itself, with the part's name; what lies inside one belongs to it."""
    yield model.model.embed_tokens, EMBEDDING
    yield model.model.norm, NORMS
    for layer in model.model.layers:
        yield layer, RESIDUAL
        yield layer.input_layernorm, NORMS  # type: ignore[misc]
        yield layer.post_attention_layernorm, NORMS  # type: ignore[misc]
        yield from _mixer_parts(layer.self_attn)  # type: ignore[arg-type]
        mlp = layer.mlp
        if not isinstance(mlp, MoE):
            yield mlp, DENSE  # type: ignore[misc]
            continue
        yield mlp.gate, ROUTER
        yield mlp.experts, EXPERTS
        if mlp.has_shared:
            yield mlp.shared_experts, SHARED


def _mixer_parts(mixer: MLA | GQA | KDA) -> Iterator[tuple[nn.Module, str]]:
    kind = type(mixer).__name__
    yield mixer, KDA_REST if isinstance(mixer, KDA) else f"{kind}: rope and layout"
    for child in mixer.children():
        if isinstance(child, Linear):
            yield child, f"{kind}: projections"
        elif isinstance(child, RMSNorm):
            yield child, NORMS
        elif isinstance(child, GatedNorm):
            yield child, KDA_NORM


def ranged(function: _Function, part: str) -> _Function:
    """`function`, every call of it in a range."""

    @wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with record_function(part):
            return function(*args, **kwargs)

    return inside


@contextmanager
def _around_attribute(owner: Any, name: str, part: str) -> Iterator[None]:
    """A range around the function `name` of a class or a module, for as long as the block lasts."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, ranged(before, part))
    try:
        yield
    finally:
        # What was inherited is inherited again.
        setattr(owner, name, before) if own else delattr(owner, name)


@contextmanager
def _around_module(module: nn.Module, part: str) -> Iterator[None]:
    """A range around every call of `module`; calls may nest, as a stack of open ranges."""
    opened: list[record_function] = []

    def enter(*_: Any) -> None:
        opened.append(record_function(part))
        opened[-1].__enter__()

    def leave(*_: Any) -> None:
        # A forward that raised before it had begun has opened nothing.
        if opened:
            opened.pop().__exit__(None, None, None)

    # Around other hooks, not between them; and closed also when the forward raises.
    hooks = module.register_forward_pre_hook(enter, prepend=True), module.register_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
