"""POST /moonlet/microscope: what happened in a model while it read one text.

    tokens    of each its id, its text, the logarithm of its probability, and the likeliest ones in its place
    next      the likeliest behind the last
    experts   of each layer that has them: the chosen ones of each token, and what each weighs
    map       of the head that was asked for, a byte for each pair of tokens, row t after row t - 1, in base64:
              255 sqrt(w), w being how t weighs s (attention) or what is left of s in the state after t (KDA)
    decay     of a head of KDA: what each token leaves of the state, the mean over key channels
    cache     bytes of a text of this length

One text is read at a time, by the engine's own thread between two of its steps: nothing else computes with the model
meanwhile, so nothing that looks at it sees another's text.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from moonlet.generate.microscope import CacheGrowth, View, look
from moonlet.generate.request import Likely
from moonlet.serve.answers import spelt
from moonlet.serve.errors import ApiError, bad
from moonlet.serve.limits import Limits
from moonlet.serve.plan import Served, too_long
from moonlet.serve.protocol import Record, read
from moonlet.text import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

PATH = "/moonlet/microscope"
_LIKELY = 8
Index = Annotated[int, Field(ge=0, lt=1 << 31)]


class MicroscopeRequest(Record):
    """POST /moonlet/microscope: one text to look at."""

    model: str | None = None
    """Which of the served models; the first where it is left out."""
    prompt: str | list[Index]
    """The text, or its token ids as the model shall read them. Before a text stands the token that begins texts."""
    layer: Index | None = None
    head: Index | None = None
    """Whose attention or decay to show; both or neither."""
    likely: Annotated[int, Field(ge=0)] = _LIKELY
    """Alternatives told of each token."""


Enter = Callable[[], Callable[[], None]]


class Microscope:
    """Looks into one of the models at a time.

    Args:
        model: the model of a name, the first for None; raises ApiError.
        enter: takes a place for a request under way and returns what gives it back; raises ApiError.
    """

    def __init__(self, model: Callable[[str | None], Served], enter: Enter, limits: Limits) -> None:
        self._model, self._enter, self._limits = model, enter, limits
        self._turn = asyncio.Lock()

    async def answer(self, request: Request) -> Response:
        """Look, and tell.

        Raises:
            ApiError: 400, 404, 408, 429 or 503.
        """
        asked = read(await request.body(), MicroscopeRequest)
        self._limits.check("logprobs", asked.likely, "likely", "likely")
        served = self._model(asked.model)
        leave = self._enter()
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                ids = await asyncio.to_thread(_ids, asked.prompt, served, self._limits)
                async with self._turn:
                    if await request.is_disconnected():
                        return Response(status_code=499)  # nobody reads it
                    view = await served.driver.call(partial(_look, served, ids, asked))
                    return Response(await asyncio.to_thread(_told, view, served), media_type="application/json")
        except TimeoutError:
            raise ApiError(408, too_long("looking", self._limits), code="request_seconds_limit") from None
        except ValueError as error:  # no such layer or head
            raise bad(str(error), "head" if str(error).startswith("head") else "layer") from None
        finally:
            leave()


def microscope_router(scope: Microscope, responses: Mapping[int | str, dict[str, Any]]) -> APIRouter:
    """The route, and what it may answer, for the application's description."""

    async def microscope(request: Request) -> Response:
        """Look into a model as it reads a text."""
        return await scope.answer(request)

    router = APIRouter()
    route: Callable[..., Awaitable[Response]] = microscope
    router.add_api_route(PATH, route, methods=["POST"], responses=dict(responses), response_class=Response)
    return router


def cache_facts(growth: CacheGrowth) -> dict[str, int]:
    """What a page needs to draw the cache's size: bytes that each token adds, and those that are always there."""
    return {"per_token": growth.per_token, "constant": growth.constant}


def _ids(prompt: str | list[int], served: Served, limits: Limits) -> list[int]:
    tokenizer = served.tokenizer
    try:
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)] if isinstance(prompt, str) else prompt
    except ValueError as error:
        raise bad(f"prompt: {error}", "prompt") from None
    limits.check("microscope_tokens", len(ids), "the text's number of tokens", "prompt")
    if not ids:
        raise bad("prompt is empty; give a text or at least one token id", "prompt")
    if len(ids) > served.context:
        raise bad(f"the text has {len(ids)} tokens, and {served.name} has {served.context} positions", "prompt")
    beyond = next((index for index in ids if index >= tokenizer.vocab_size), None)
    if beyond is not None:
        raise bad(f"prompt holds token {beyond}; the vocabulary is 0..{tokenizer.vocab_size - 1}", "prompt")
    return ids


def _look(served: Served, ids: list[int], asked: MicroscopeRequest) -> View:
    return look(
        served.network, ids, asked.layer, asked.head, k=asked.likely, vocabulary=served.tokenizer.vocab_size
    )  # fmt: skip


def _told(view: View, served: Served) -> bytes:
    """The answer's body."""
    tokenizer, T = served.tokenizer, len(view.ids)
    growth = served.growth
    return to_json(
        {
            "object": "microscope",
            "model": served.name,
            "tokens": [
                {"id": index, "token": spelt(index, tokenizer), "text": text, "logprob": logprob, "likely": likely}
                for index, text, logprob, likely in zip(
                    view.ids,
                    _texts(view.ids, tokenizer),
                    view.logprobs,
                    (_alternatives(likely, tokenizer) for likely in view.likely),
                    strict=True,
                )
            ],
            "next": _alternatives(view.next, tokenizer),
            "experts": [
                {"layer": layer, "index": index.tolist(), "weight": _rounded(view.weights[layer])}
                for layer, index in sorted(view.experts.items())
            ],
            "map": _map(view),
            "decay": None if view.decay is None else _rounded(view.decay.mean(-1)),
            "cache": {"bytes": growth.at(T), **cache_facts(growth)},
        }
    )


def _texts(ids: Iterable[int], tokenizer: Tokenizer) -> list[str]:
    """What each token adds to the text; marks are spelt out."""
    stream = tokenizer.detokenizer(skip_special=False)
    texts = [stream.push(index) for index in ids]
    texts[-1] += stream.finish()
    return texts


def _alternatives(likely: Iterable[Likely], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    return [{"id": one.token, "token": spelt(one.token, tokenizer), "logprob": one.logprob} for one in likely]


def _map(view: View) -> dict[str, Any] | None:
    if view.attention is None and view.decay is None:
        return None
    kind, cells = ("attention", view.attention) if view.attention is not None else ("kept", view.kept())
    assert cells is not None
    data = (cells.clamp(0, 1).sqrt() * 255).round().byte().numpy().tobytes()
    return {"kind": kind, "layer": view.layer, "head": view.head, "cells": base64.b64encode(data).decode()}


def _rounded(values: Tensor) -> Any:
    return (values.double() * 1e4).round().div(1e4).tolist()
