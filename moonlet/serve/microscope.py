"""POST /moonlet/microscope: one text or conversation looked at from inside, as plain JSON for a page.

    request    model, prompt (a text, or ids) or messages (with tools and thinking, as in a chat), layer, head, likely
    answer     of T tokens: ids, tokens, texts (joined they are the text), logprobs, likely [T], next; ends (ids that
               end what is looked at); by layer experts {chosen [T, A], weights [T, A]}; of the head asked for attention
               (row t has t + 1 numbers), or decay [T, K] and kept (as attention)

The view is taken in the engine's thread, between two of its steps, since it listens to the same layers.
"""

from __future__ import annotations

import asyncio
from typing import Any

from torch import Tensor

from moonlet.generate.microscope import View, cache_growth, look
from moonlet.generate.request import Likely
from moonlet.serve.answers import spelt
from moonlet.serve.errors import bad
from moonlet.serve.limits import Limits
from moonlet.serve.plan import Served, chat_form, chat_ids, prompt_ids, turn_ends
from moonlet.serve.protocol import ViewRequest
from moonlet.text import Tokenizer

_DIGITS = 5  # of a number that becomes a shade of a colour


async def view(asked: ViewRequest, served: Served, limits: Limits) -> dict[str, Any]:
    """Look, and tell.

    Raises:
        ApiError: 400 for what cannot be looked at, 429 and 503 as for a text to be continued.
    """
    ids, ends = await asyncio.to_thread(_ids, asked, served, limits)
    limits.check("view_tokens", len(ids), "the text's number of tokens", "messages" if asked.messages else "prompt")
    layer, head, many = asked.layer, asked.head, 10 if asked.likely is None else asked.likely
    tokenizer, model = served.tokenizer, served.model
    seen = await served.driver.call(
        lambda: look(model, ids, layer, head, k=many, vocabulary=tokenizer.vocab_size)
    )  # fmt: skip
    told = await asyncio.to_thread(_told, seen, tokenizer)  # a large map takes a while to write
    return {"object": "moonlet.view", "model": served.name, **told, "ends": sorted(ends), "cache": _cache(served)}


def _ids(asked: ViewRequest, served: Served, limits: Limits) -> tuple[tuple[int, ...], frozenset[int]]:
    """What to look at, and what would end it."""
    if (asked.prompt is None) == (asked.messages is None):
        raise bad("give either prompt, one text, or messages, a conversation", "prompt")
    if asked.prompt is not None:
        if len(asked.prompt) != 1:
            raise bad(f"the microscope reads one text, and prompt holds {len(asked.prompt)}", "prompt")
        if asked.tools is not None or asked.thinking is not None:
            raise bad("tools and thinking belong to messages; a prompt is read as it is", "tools")
        return prompt_ids(asked.prompt[0], served), frozenset({served.tokenizer.eos_id})
    messages, form = asked.messages or [], chat_form(served)
    limits.check("messages", len(messages), "the number of messages", "messages")
    limits.check("tools", len(asked.tools or ()), "the number of tools", "tools")
    thinking = not form.thinks or asked.thinking is None or asked.thinking.type == "enabled"
    tools = [tool.model_dump(exclude_unset=True) for tool in asked.tools or ()]
    answered = bool(messages) and messages[-1].get("role") == "assistant"
    return chat_ids(messages, served, tools, thinking=thinking, answered=answered), turn_ends(served)


def _told(view: View, tokenizer: Tokenizer) -> dict[str, Any]:
    told: dict[str, Any] = {
        "ids": list(view.ids),
        "tokens": [spelt(token, tokenizer) for token in view.ids],
        "texts": _texts(view.ids, tokenizer),
        "logprobs": list(view.logprobs),
        "likely": [_likely(place, tokenizer) for place in view.likely],
        "next": _likely(view.next, tokenizer),
        "experts": {
            str(layer): {"chosen": chosen.tolist(), "weights": _rounded(view.weights[layer])}
            for layer, chosen in view.experts.items()
        },
        "layer": view.layer,
        "head": view.head,
    }
    if view.attention is not None:
        told["attention"] = _lower(view.attention)
    if view.decay is not None:
        told |= {"decay": _rounded(view.decay), "kept": _lower(view.kept())}
    return told


def _texts(ids: tuple[int, ...], tokenizer: Tokenizer) -> list[str]:
    """What each token adds to the text; special tokens are spelt out."""
    stream = tokenizer.detokenizer(skip_special=False)
    texts = [stream.push(token) for token in ids]
    texts[-1] += stream.finish()
    return texts


def _likely(found: tuple[Likely, ...], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    return [{"id": one.token, "token": spelt(one.token, tokenizer), "logprob": one.logprob} for one in found]


def _rounded(values: Tensor) -> list[list[float]]:
    return [[round(value, _DIGITS) for value in row] for row in values.tolist()]


def _lower(square: Tensor) -> list[list[float]]:
    """What lies on and below the diagonal, row by row; the rest is 0."""
    return [[round(value, _DIGITS) for value in row[: t + 1]] for t, row in enumerate(square.tolist())]


def _cache(served: Served) -> dict[str, int]:
    growth = cache_growth(served.model)
    return {"bytes_per_token": growth.per_token, "bytes_constant": growth.constant}
