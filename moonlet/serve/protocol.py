"""Requests as the OpenAI interface spells them.

What each kind of field means here:

    known and used       checked strictly: "5" is no number, and neither NaN nor infinity is one anywhere
    known, no effect     `user`, `metadata`, `store` and the like are taken and say nothing about the answer
    known, not here      refused with what to use instead: sound, web search, the old `functions`
    unknown              refused, as the OpenAI interface does: a misspelt setting must not pass for a setting
    of other servers     `top_k`, `min_p`, `repetition_penalty`, `thinking`, `chat_template_kwargs` mean what they mean
                         there; an OpenAI client sends them in `extra_body`

Bodies are read by a parser that stops at 200 levels of nesting, at numbers of 4,300 digits, and at invalid UTF-8.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails, from_json

from moonlet.serve.errors import ApiError, bad

_NOT_HERE = {
    "functions": "use tools",
    "function_call": "use tool_choice",
    "audio": "this server writes text",
    "modalities": "this server writes text",
    "web_search_options": "this server has no network",
    "suffix": "this server's models continue texts and do not fill gaps",
    "best_of": "use n",
}
_MOST_SHOWN = 80


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


def _stops(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError("must be a text or a list of texts")
    if not all(value):
        raise ValueError("holds an empty text, which would end every answer at once")
    return value


def _prompts(value: object) -> list[str] | list[list[int]]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(text, str) for text in value):
            return value
        if _are_ids(value):
            return [value]
        if all(isinstance(ids, list) and ids and _are_ids(ids) for ids in value):
            return value
    raise ValueError("must be a text, a list of texts, a list of token ids, or a list of such lists; none empty")


def _are_ids(value: list[object]) -> bool:
    return all(isinstance(index, int) and not isinstance(index, bool) for index in value)


def _bias(value: object) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("must be an object of token ids and numbers")
    bias = {}
    for key, number in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10):
            raise ValueError(f"holds {_shown(key)}, which is no token id")
        if isinstance(number, bool) or not isinstance(number, int | float) or not -100 <= number <= 100:
            raise ValueError(f"of token {key} must be a number in -100..100")
        bias[int(key)] = float(number)
    return bias


_TEXT = {"type": "string"}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
Stops = Annotated[
    list[str],
    BeforeValidator(_stops),
    WithJsonSchema({"anyOf": [{**_TEXT, "minLength": 1}, {"type": "array", "items": {**_TEXT, "minLength": 1}}]}),
]
Prompts = Annotated[
    list[str] | list[list[int]],
    BeforeValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                _TEXT,
                {"type": "array", "items": _TEXT, "minItems": 1},
                _IDS,
                {"type": "array", "items": _IDS, "minItems": 1},
            ]
        }
    ),
]
Bias = Annotated[
    dict[int, float],
    BeforeValidator(_bias),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}}),
]


class StreamOptions(_Record):
    """How a stream ends."""

    include_usage: bool = False
    """One more chunk with the count of tokens."""
    include_obfuscation: bool | None = None
    """No effect: chunks are never padded."""


class Sampling(_Record):
    """What both kinds of request have in common."""

    model: str | None = None
    """Which of the served models; the first where it is left out."""
    n: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: Bias = {}
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Stops = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None


class CompletionRequest(Sampling):
    """POST /v1/completions: texts to go on with."""

    prompt: Prompts
    max_tokens: int | None = Field(None, ge=1)
    """16 where it is left out, as in the OpenAI interface."""
    logprobs: int | None = Field(None, ge=0)
    echo: bool | None = None
    """Whether the answer begins with the prompt."""


class JsonSchema(_Record):
    """A schema that the answer must follow."""

    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] | bool = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Record):
    """What kind of text the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class FunctionName(_Record):
    name: str


class NamedTool(_Record):
    """The one function that must be called."""

    type: Literal["function"]
    function: FunctionName


class Function(_Record):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Record):
    type: Literal["function"]
    function: Function


class Thinking(_Record):
    type: Literal["enabled", "disabled"]


class TemplateSettings(_Record):
    thinking: bool | None = None
    enable_thinking: bool | None = None


class ChatRequest(Sampling):
    """POST /v1/chat/completions: a conversation to be answered."""

    messages: list[dict[str, Any]]
    """Checked in full where they are rendered; see `moonlet.text.chat.messages`."""
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """ "none" switches thinking off; the others change nothing."""
    thinking: Thinking | None = None
    chat_template_kwargs: TemplateSettings | None = None
    verbosity: Any = None
    prediction: Any = None

    @property
    def thinks(self) -> bool:
        """Whether thinking is asked for or left to the model."""
        settings = self.chat_template_kwargs
        off = (
            self.reasoning_effort == "none",
            self.thinking is not None and self.thinking.type == "disabled",
            settings is not None and False in (settings.thinking, settings.enable_thinking),
        )
        return not any(off)


class ViewRequest(_Record):
    """POST /moonlet/microscope: a text to look at, or a conversation; one of `prompt` and `messages`."""

    prompt: Prompts | None = None
    """One text, or its ids."""
    messages: list[dict[str, Any]] | None = None
    """A conversation, as in a chat; one that does not end with an answer is read up to where the answer begins."""
    tools: list[Tool] | None = None
    thinking: Thinking | None = None
    model: str | None = None
    layer: int | None = Field(None, ge=0)
    head: int | None = Field(None, ge=0)
    likely: int | None = Field(None, ge=0)
    """Tokens told at each place; 10 where it is left out."""


R = TypeVar("R", bound=BaseModel)


def read(body: bytes, kind: type[R]) -> R:
    """A request out of the bytes of its body.

    Raises:
        ApiError: 400, naming the field.
    """
    try:
        content = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise bad(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(content, dict):
        raise bad(f"the body is a JSON {_kind(content)}, and must be an object", code="invalid_json")
    # Some clients write null for what they leave out.
    content = {name: value for name, value in content.items() if value is not None or name not in _NOT_HERE}
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise _explain(error.errors(include_url=False, include_context=False), kind) from None


def _explain(errors: list[ErrorDetails], kind: type[BaseModel]) -> ApiError:
    first = errors[0]
    *outer, last = first["loc"]
    unknown = first["type"] == "extra_forbidden"
    # What is unknown is the client's own word, whatever it looks like.
    path = [*filter(_is_field, outer), *([last] if unknown or _is_field(last) else [])]
    param = ".".join(map(str, path))
    param = param if len(param) <= _MOST_SHOWN else param[:_MOST_SHOWN] + "..."
    if unknown:
        if param in _NOT_HERE:
            return bad(f"{param} is not supported: {_NOT_HERE[param]}", param, "unsupported_parameter")
        known = ", ".join(field.alias or name for name, field in kind.model_fields.items())
        hint = "" if outer else f"; known are {known}"
        return bad(f"unknown parameter {param}{hint}", param, "unknown_parameter")
    if first["type"] == "missing":
        return bad(f"{param} is missing", param, "missing_required_parameter")
    what = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("String should ")
    if not first["type"].startswith("value_error"):
        what = f"is {_shown(first['input'])}; it should be {what}"
    return bad(f"{param} {what}", param, "invalid_value")


def _is_field(part: int | str) -> bool:
    """Whether a part of a location is the request's own. In a union every member complains, and the members' names,
    which mean nothing to a client, stand in the location."""
    return isinstance(part, int) or (part[:1].islower() and "[" not in part)


def _shown(value: object) -> str:
    """A value as it may stand in a message, whatever its length."""
    if isinstance(value, dict | list):
        return f"a JSON {_kind(value)}"
    if isinstance(value, int) and abs(value) > 1 << 80:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."


def _kind(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
