"""The interface described for programs: /openapi.json, whose schemas are those that requests are checked against."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from moonlet.serve.limits import Limits
from moonlet.serve.protocol import ChatRequest, CompletionRequest, ViewRequest

_REQUESTS: dict[str, type[BaseModel]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/moonlet/microscope": ViewRequest,
}
_NULL = {"type": "null"}
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _maybe(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, _NULL]}


def _list(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema}


_FINISH = {"enum": ["stop", "length", "tool_calls"]}
_USAGE = _object(
    prompt_tokens=_COUNT,
    completion_tokens=_COUNT,
    total_tokens=_COUNT,
    prompt_tokens_details=_object(cached_tokens=_COUNT),
    completion_tokens_details=_object(reasoning_tokens=_COUNT),
)
_TOKEN = _object(token=_TEXT, logprob={"type": "number"}, bytes=_list(_COUNT))
_CHAT_LOGPROBS = _object(content=_list({"allOf": [_TOKEN, _object(top_logprobs=_list(_TOKEN))]}), refusal=_NULL)
_COMPLETION_LOGPROBS = _object(
    tokens=_list(_TEXT),
    token_logprobs=_list({"type": "number"}),
    top_logprobs=_list({"type": "object", "additionalProperties": {"type": "number"}}),
    text_offset=_list(_COUNT),
    token_ids=_list(_COUNT),
)
_MESSAGE = _object(role={"const": "assistant"}, content=_maybe(_TEXT), refusal=_NULL)
_MESSAGE["properties"] |= {
    "reasoning_content": _TEXT,
    "tool_calls": _list(_object(id=_TEXT, type={"const": "function"}, function=_object(name=_TEXT, arguments=_TEXT))),
}
_LIKELY = _object(id=_COUNT, token=_TEXT, logprob={"type": "number"})
_MODEL = _object(id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT)
_ERROR = _object(error=_object(message=_TEXT, type=_TEXT, param=_maybe(_TEXT), code=_maybe(_TEXT)))


def _answer(kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return _object(id=_TEXT, object={"const": kind}, created=_COUNT, model=_TEXT, choices=_list(choice), usage=_USAGE)


_SCHEMAS = {
    "completion": _answer(
        "text_completion",
        _object(index=_COUNT, text=_TEXT, logprobs=_maybe(_COMPLETION_LOGPROBS), finish_reason=_FINISH),
    ),
    "chat": _answer(
        "chat.completion",
        _object(index=_COUNT, message=_MESSAGE, logprobs=_maybe(_CHAT_LOGPROBS), finish_reason=_FINISH),
    ),
    "models": _object(object={"const": "list"}, data=_list(_MODEL)),
    "model": _MODEL,
    "health": _object(status=_TEXT),
    "view": _object(
        object={"const": "moonlet.view"},
        ids=_list(_COUNT),
        tokens=_list(_TEXT),
        logprobs=_list(_maybe({"type": "number"})),
        likely=_list(_list(_LIKELY)),
        next=_list(_LIKELY),
        ends=_list(_COUNT),
        experts={"type": "object"},
        cache=_object(bytes_per_token=_COUNT, bytes_constant=_COUNT),
    ),
}


def _responses(kind: str, *errors: int) -> dict[int | str, dict[str, Any]]:
    content: dict[str, Any] = {"text/plain": {"schema": _TEXT}}
    if kind in _SCHEMAS:
        content = {"application/json": {"schema": _SCHEMAS[kind]}}
    if kind in ("completion", "chat"):
        content["text/event-stream"] = {"schema": _TEXT}
    found: dict[int | str, dict[str, Any]] = {200: {"description": "the answer", "content": content}}
    for status in (*errors, 401, 403):
        found[status] = {"description": "an error", "content": {"application/json": {"schema": _ERROR}}}
    return found


_WRONG = (400, 404, 408, 413, 415, 429, 500, 503)
ANSWERS: dict[str, dict[int | str, dict[str, Any]]] = {
    "completion": _responses("completion", *_WRONG),
    "chat": _responses("chat", *_WRONG),
    "view": _responses("view", *_WRONG),
    "models": _responses("models"),
    "model": _responses("model", 404),
    "health": _responses("health", 503),
    "metrics": _responses("metrics"),
}


def describe(app: FastAPI, limits: Limits, locked: bool) -> dict[str, Any]:
    """The OpenAPI document of an application."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for path, kind in _REQUESTS.items():
        schema = kind.model_json_schema(by_alias=True, ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[kind.__name__] = schema
        document["paths"][path]["post"]["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}},
        }
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # what FastAPI would answer; here a wrong request is a 400
    document["x-limits"] = {name: getattr(limits, name) for name in Limits.__dataclass_fields__}
    if locked:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        document["paths"]["/health"]["get"]["security"] = []
    app.openapi_schema = document
    return document
