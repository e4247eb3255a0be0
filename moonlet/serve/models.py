"""From a loaded model to one that is served: its engine behind a driver, and what clients may know of it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moonlet.generate.microscope import heads
from moonlet.model.count import full_cache_bytes_per_token
from moonlet.model.model import CausalLM
from moonlet.serve.driver import Driver, Engine
from moonlet.serve.limits import Limits
from moonlet.serve.plan import Served
from moonlet.text import Tokenizer
from moonlet.text.chat import ChatForm, mark_ids

if TYPE_CHECKING:
    from moonlet.generate.grammar import Grammars

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")


def serve_model(
    name: str,
    model: CausalLM,
    tokenizer: Tokenizer,
    make_engine: Callable[[], Engine],
    *,
    slots: int,
    limits: Limits,
    room: int | None = None,
    form: ChatForm | None = None,
    created: int | None = None,
) -> Served:
    """A model ready to be served.

    Args:
        name: what clients call it.
        make_engine: builds its engine, of as many slots; called in the thread that will own it.
        room: tokens the engine's cache holds, where that is less than the model has positions.
        form: how it writes chats; None: not at all.
        created: Unix time of its files; None: now.

    Raises:
        ValueError: a name that cannot stand in a path, or a tokenizer without the marks of `form`.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a model; use letters, digits and . _ @ + - behind a letter or digit")
    if form is not None:
        missing = sorted(set(form.marks) - set(mark_ids(tokenizer)))
        if missing:
            raise ValueError(
                f"chat form {form.name} needs {', '.join(missing)}, which the {tokenizer.kind} tokenizer of {name} "
                "lacks; choose the form its model was trained with"
            )
    return Served(
        name,
        model,
        tokenizer,
        Driver(make_engine, slots, limits),
        min(model.config.context_limit, room or model.config.context_limit),
        model.config.vocab_size,
        form,
        int(time.time()) if created is None else created,
        _facts(model),
        _once(tokenizer),
    )


def _facts(model: CausalLM) -> dict[str, Any]:
    """What a page draws: kinds and heads of the layers, experts, bytes a token of a cache of whole keys and values."""
    config = model.config
    linear = config.linear_attn_config
    kda = set() if linear is None else set(linear.kda_layers)
    return {
        "layers": ["kda" if layer + 1 in kda else "attention" for layer in range(config.num_hidden_layers)],
        "heads": [heads(model, layer) for layer in range(config.num_hidden_layers)],
        "experts": config.n_routed_experts,
        "experts_per_token": config.num_experts_per_tok,
        "vocab_size": config.vocab_size,
        "full_cache": full_cache_bytes_per_token(config, model.dtype.itemsize),
    }


def _once(tokenizer: Tokenizer) -> Callable[[], Grammars]:
    """Grammars of a tokenizer, made when first asked for, and once."""
    made: list[Grammars] = []
    lock = threading.Lock()

    def grammars() -> Grammars:
        from moonlet.generate.grammar import Grammars

        with lock:
            if not made:
                made.append(Grammars(tokenizer))
            return made[0]

    return grammars
