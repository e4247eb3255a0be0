"""Random JSON schemas, and whether a value is valid under one."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any


def random_schema(draw: random.Random, depth: int = 3) -> dict[str, Any]:
    """A schema of bounded texts, so that a model without a will of its own comes to an end."""
    kinds: list[Callable[[random.Random, int], dict[str, Any]]] = [_integer, _number, _string, _simple]
    if depth:
        kinds += [_array, random_object, random_object, _any_of]
    return draw.choice(kinds)(draw, depth - 1)


def _integer(draw: random.Random, depth: int) -> dict[str, Any]:
    low = draw.randint(-500, 500)
    return {"type": "integer", **draw.choice([{}, {"minimum": low, "maximum": low + draw.randint(0, 900)}])}


def _number(draw: random.Random, depth: int) -> dict[str, Any]:
    low = draw.randint(-50, 50) / 4
    return {"type": "number", **draw.choice([{}, {"minimum": low, "exclusiveMaximum": low + draw.randint(1, 99) / 8}])}


def _string(draw: random.Random, depth: int) -> dict[str, Any]:
    least = draw.randint(0, 4)
    bounded = {"minLength": least, "maxLength": least + draw.randint(0, 9)}
    return {"type": "string", **draw.choice([bounded, {"pattern": "^[a-f]{2,5}(-[0-9]+)?$"}, {"format": "date"}])}


def _simple(draw: random.Random, depth: int) -> dict[str, Any]:
    values: list[Any] = ['é\n"', 'a"b', "", 7, -1.5, None, True, [1, "x"], {"k": 0}]
    return draw.choice(
        [{"type": "boolean"}, {"type": "null"}, {"const": draw.choice(values)}, {"enum": draw.sample(values, 3)}]
    )


def _array(draw: random.Random, depth: int) -> dict[str, Any]:
    least = draw.randint(0, 2)
    return {
        "type": "array",
        "items": random_schema(draw, depth),
        "minItems": least,
        "maxItems": least + draw.randint(0, 3),
    }


def random_object(draw: random.Random, depth: int) -> dict[str, Any]:
    """The schema of an object, as the arguments of a function have one."""
    names = draw.sample(["a", "b", "name", "größe", "x y", 'q"'], draw.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: random_schema(draw, depth) for name in names},
        "required": draw.sample(names, draw.randint(0, len(names))),
        "additionalProperties": False,
    }


def _any_of(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(draw, depth) for _ in range(draw.randint(1, 3))]}


def valid(value: Any, schema: dict[str, Any]) -> bool:
    """Whether `value` is valid: what of JSON schema the schemas above use, written from its specification."""
    if "anyOf" in schema:
        return any(valid(value, option) for option in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return any(value == one and type(value) is type(one) for one in schema.get("enum", [schema.get("const")]))
    match schema["type"]:
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer" | "number" as kind:
            kinds = int if kind == "integer" else int | float
            return (
                isinstance(value, kinds)
                and not isinstance(value, bool)
                and value >= schema.get("minimum", value)
                and value <= schema.get("maximum", value)
                and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
            )
        case "string":
            return (
                isinstance(value, str)
                and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9)
                and re.search(schema.get("pattern", ""), value) is not None
                and (schema.get("format") != "date" or re.fullmatch(r"\d{4}-\d\d-\d\d", value) is not None)
            )
        case "array":
            most = schema.get("maxItems", 10**9)
            items = schema.get("items")
            return (
                isinstance(value, list)
                and schema.get("minItems", 0) <= len(value) <= most
                and all(items is None or valid(item, items) for item in value)
            )
        case "object":
            fields = schema.get("properties", {})
            return (
                isinstance(value, dict)
                and set(schema.get("required", [])) <= set(value)
                and (schema.get("additionalProperties", True) or set(value) <= set(fields))
                and all(valid(v, fields[name]) for name, v in value.items() if name in fields)
            )
    raise AssertionError(schema)
