"""Texts under a grammar beside texts without, in one batch: neither notices the other."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from moonlet.generate.batch import Engine
from moonlet.generate.grammar import Grammars
from moonlet.generate.request import Request
from moonlet.generate.sample import SamplingParams
from moonlet.model.model import CausalLM
from moonlet.text import ByteTokenizer
from tests.conftest import LINEAR
from tests.generate.schemas import random_object, valid

pytest.importorskip("llguidance")

BYTES = ByteTokenizer()
KINDS: dict[str, dict[str, Any]] = {"k2": {"num_hidden_layers": 2}, "linear": LINEAR}
ENDS = frozenset({BYTES.eos_id})

Got = tuple[list[int], str, str | None]
"""Tokens, text, how it ended."""


def written(engine: Engine, asked: Sequence[Request], draw: random.Random) -> list[Got]:
    """What each request got, arriving at any time."""
    got: dict[int, Got] = {}
    left = list(asked)
    while left or not engine.idle:
        for _ in range(draw.randrange(4)):
            if left:
                got[engine.submit(left.pop(0))] = [], "", None
        for event in engine.step():
            tokens, text, _ = got[event.ticket]
            got[event.ticket] = (
                tokens + ([] if event.token is None else [event.token]),
                text + event.text,
                event.finish,
            )
    return list(got.values())


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_grammars_bind_those_who_have_one_and_nobody_else(
    tiny_model: Callable[..., CausalLM], changes: dict[str, Any]
) -> None:
    model = tiny_model(vocab_size=BYTES.vocab_size, max_position_embeddings=2048, **changes)
    draw, grammars = random.Random(5), Grammars(BYTES)
    asked: list[Request] = []
    schemas: list[dict[str, Any] | None] = []
    for number in range(24):
        # Of prompts and seeds there are few, so that a text with a grammar and one without begin and draw alike.
        prompt = (BYTES.bos_id, *BYTES.encode("Once upon a time there was a fox"[: 20 + number // 2 % 3]))
        params = SamplingParams(60, temperature=draw.choice((0.0, 1.0)), seed=number // 2 % 4)
        schemas.append(random_object(draw, 0) if number % 2 else None)
        if schemas[-1] is not None:
            params = SamplingParams(1500, temperature=1.0, seed=params.seed)
        grammar = None if schemas[-1] is None else grammars.json_schema(schemas[-1])
        asked.append(Request(prompt, params, ENDS, grammar=grammar))
    one = Engine(model, BYTES, slots=1, reuse_prefixes=False)
    alone = [written(one, [request], draw)[0] for request in asked]
    together = written(Engine(model, BYTES, slots=8, poison=True, block=8), asked, draw)
    assert together == alone
    for (tokens, text, finish), schema in zip(together, schemas, strict=True):
        if schema is not None:
            assert finish == "stop"
            assert valid(json.loads(text), schema)
        else:
            assert len(tokens) == 60 or finish == "stop"
    free = [tokens for (tokens, _, _), schema in zip(together, schemas, strict=True) if schema is None]
    assert sum(map(len, free)) > 100
