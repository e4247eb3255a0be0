"""From a model to text: samplers, the decode step, and the engine that continues many prompts at once.

Names are resolved on first use, so that importing the room does not import torch. The room itself can be called:
`moonlet.generate(model, tokenizer, prompts)` is `moonlet.generate.generate(...)`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moonlet.generate.batch import Engine
    from moonlet.generate.decoding import lay_out, new_step
    from moonlet.generate.engine import Completion, complete, generate, stream, stream_ids
    from moonlet.generate.request import Event, Request
    from moonlet.generate.sample import SamplingParams
    from moonlet.generate.step import Step

__all__ = [
    "Completion",
    "Engine",
    "Event",
    "Request",
    "SamplingParams",
    "Step",
    "complete",
    "generate",
    "lay_out",
    "new_step",
    "stream",
    "stream_ids",
]

_HOME = {
    "Completion": "moonlet.generate.engine",
    "Engine": "moonlet.generate.batch",
    "Event": "moonlet.generate.request",
    "Request": "moonlet.generate.request",
    "SamplingParams": "moonlet.generate.sample",
    "Step": "moonlet.generate.step",
    "complete": "moonlet.generate.engine",
    "generate": "moonlet.generate.engine",
    "lay_out": "moonlet.generate.decoding",
    "new_step": "moonlet.generate.decoding",
    "stream": "moonlet.generate.engine",
    "stream_ids": "moonlet.generate.engine",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


class _Room(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        return import_module("moonlet.generate.engine").generate(*args, **settings)


sys.modules[__name__].__class__ = _Room
