"""The one place where an implementation is chosen.

Each op registers its implementations by name; the op's own function says which suits its inputs, and `force` (or the
environment variable MOONLET_OPS, as in "attention=reference,experts=reference") overrides that choice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_implementations: dict[str, dict[str, Callable[..., Any]]] = {}
_forced: dict[str, str] = {}


def register(op: str, name: str) -> Callable[[F], F]:
    """Decorator: make the function the implementation `name` of `op`."""

    def add(function: F) -> F:
        _implementations.setdefault(op, {})[name] = function
        return function

    return add


def chosen(op: str, choice: str) -> str:
    """Name of the implementation of `op` that runs: `choice`, or the one forced instead of it."""
    name = _forced.get(op, choice)
    if name not in _implementations[op]:
        raise _no_such(op, name)  # only the environment can have asked for it
    return name


def implementation(op: str, choice: str) -> Callable[..., Any]:
    """Return the implementation `choice` of `op`, or the one forced instead."""
    return _implementations[op][chosen(op, choice)]


def names(op: str) -> list[str]:
    """Names of the implementations of `op`."""
    return sorted(_implementations.get(op, {}))


@contextmanager
def force(op: str, name: str) -> Iterator[None]:
    """Use `name` for every call of `op` inside the block, whatever its inputs."""
    if name not in _implementations.get(op, {}):
        raise _no_such(op, name)
    before = _forced.get(op)
    _forced[op] = name
    try:
        yield
    finally:
        if before is None:
            del _forced[op]
        else:
            _forced[op] = before


@contextmanager
def wrapped(op: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Put what `wrap` makes of it in place of each implementation of `op` inside the block; the choice stays as is."""
    before = dict(_implementations[op])
    _implementations[op].update({name: wrap(function) for name, function in before.items()})
    try:
        yield
    finally:
        _implementations[op].update(before)


def _no_such(op: str, name: str) -> ValueError:
    return ValueError(f"op {op!r} has no implementation {name!r}; valid: {', '.join(names(op)) or 'none'}")


def _read_environment() -> None:
    for item in filter(None, os.environ.get("MOONLET_OPS", "").split(",")):
        op, _, name = item.partition("=")
        _forced[op.strip()] = name.strip()


_read_environment()
