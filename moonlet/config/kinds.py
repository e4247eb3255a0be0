"""Which kind of value each field of a settings dataclass takes: JSON and TOML say nothing of types."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

_KINDS = {"int": "a whole number", "float": "a finite number", "bool": "true or false", "str": "a text"}


def check_kinds(settings: Any, prefix: str = "") -> None:
    """Raise ValueError for a value of another kind than its field's annotation.

    Args:
        settings: a dataclass whose annotations are texts, "int" or "float | None".
        prefix: what stands before a field's name in the message.
    """
    for f in fields(settings):
        value, (kind, _, null) = getattr(settings, f.name), str(f.type).partition(" | ")
        if kind not in _KINDS or (null and value is None):
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        right = {
            "int": number and isinstance(value, int),
            "float": number and math.isfinite(value),
            "bool": isinstance(value, bool),
            "str": isinstance(value, str),
        }[kind]
        if not right:
            raise ValueError(f"{prefix}{f.name} is {value!r}; it must be {_KINDS[kind]}{' or null' if null else ''}")
