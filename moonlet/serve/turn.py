"""What an answer in a chat may be, as a grammar, from tools, tool_choice and response_format.

    tool_choice    content        calls
    none           as asked       no mark of a call can be drawn
    auto           as asked       may come, each whole, of a declared name, its arguments by that name's schema
    required       none           at least one
    a name         none           exactly one, of that name

Without tools a call would be a mistake of the model, and is shown as the text it is. A schema that asks for what no
grammar can keep is refused where the tool is `strict`; else its arguments are any JSON object, which is all that is
promised of a tool that is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moonlet.generate.request import Grammar
from moonlet.serve.errors import bad
from moonlet.serve.protocol import ChatRequest, NamedTool
from moonlet.text import Tokenizer
from moonlet.text.chat import ChatForm, mark_ids
from moonlet.text.chat.forms import CALL_MARKS

if TYPE_CHECKING:
    from moonlet.generate.grammar import Grammars

Tool = Mapping[str, Any]
_ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True)
class NoCalls:
    """Any text without a tool call."""

    tokenizer: Tokenizer
    allowed_bits: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        bits = bytearray(b"\xff" * ((self.tokenizer.vocab_size + 7) // 8))
        marks = mark_ids(self.tokenizer)
        for token in (marks[name] for name in CALL_MARKS if name in marks):
            bits[token >> 3] &= ~(1 << (token & 7))
        object.__setattr__(self, "allowed_bits", bytes(bits))

    def matcher(self) -> NoCalls:
        """Itself: it is the same at every place."""
        return self

    def allowed(self) -> bytes:
        """All but the marks of calls."""
        return self.allowed_bits

    def take(self, token: int) -> None:
        """Nothing changes."""

    @property
    def done(self) -> bool:
        """Never: the text ends when it does."""
        return False


@dataclass(frozen=True)
class Wanted:
    """What a request says of its answer's shape.

    Attributes:
        tools: those that may be called, as plain JSON.
        must: whether one has to be called.
        several: whether more than one call may be made.
        content: schema of the text beside calls; None: any text.
    """

    tools: Sequence[Tool]
    must: bool
    several: bool
    content: Mapping[str, Any] | bool | None


def read_wanted(asked: ChatRequest) -> Wanted:
    """Check tools, tool_choice and response_format against each other.

    Raises:
        ApiError: 400, naming the field.
    """
    tools = [tool.model_dump(exclude_unset=True) for tool in asked.tools or ()]
    names = [tool["function"]["name"] for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise bad(f"the tool {twice!r} is declared more than once", "tools")
    choice, several = asked.tool_choice, asked.parallel_tool_calls is not False
    must = choice == "required" or isinstance(choice, NamedTool)
    if isinstance(choice, NamedTool):
        name, several = choice.function.name, False
        tools = [tool for tool in tools if tool["function"]["name"] == name]
        if not tools:
            raise bad(f"tool_choice names {name[:80]!r}, which tools does not declare", "tool_choice")
    elif choice == "required" and not tools:
        raise bad("tool_choice is required, and there are no tools", "tool_choice")
    return Wanted([] if choice == "none" else tools, must, several, _content(asked))


def turn_grammar(
    wanted: Wanted, grammars: Grammars, form: ChatForm, *, thinking: bool, calls_before: int
) -> Grammar | None:
    """The grammar of an answer; None where anything will do.

    Raises:
        ApiError: 400, a schema that is none or that cannot be kept.
    """
    from moonlet.generate.grammar import MAX_CALLS

    if wanted.tools:
        try:
            return grammars.tool_calls(
                [_kept(tool, grammars) for tool in wanted.tools],
                form,
                choice="required" if wanted.must else "auto",
                most=MAX_CALLS if wanted.several else 1,
                calls_before=calls_before,
                thinking=thinking,
                content=wanted.content,
            )
        except ValueError as error:
            raise bad(f"tools: {_line(error)}", "tools") from None
    if wanted.content is not None:
        try:
            return grammars.json_schema(wanted.content, form=form, thinking=thinking)
        except ValueError as error:
            raise bad(f"response_format: {_line(error)}", "response_format") from None
    return None


def declared(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as a template writes them: without what is said to the server alone."""
    return [
        {**tool, "function": {key: value for key, value in tool["function"].items() if key != "strict"}}
        for tool in tools
    ]


def _content(asked: ChatRequest) -> Mapping[str, Any] | bool | None:
    wanted = asked.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return _ANY_OBJECT
    if wanted.json_schema is None:
        raise bad("response_format of type json_schema needs json_schema", "response_format.json_schema")
    try:
        json.dumps(wanted.json_schema.schema_, allow_nan=False)
    except ValueError as error:
        raise bad(f"response_format: the schema is not plain JSON: {error}", "response_format") from None
    return wanted.json_schema.schema_


def _kept(tool: Tool, grammars: Grammars) -> Tool:
    """The tool, its arguments any object where its own schema cannot be kept and need not be."""
    function = tool["function"]
    schema = function.get("parameters")
    if schema is None:
        return tool
    try:
        grammars.json_schema({**_ANY_OBJECT, **schema})
    except ValueError as error:
        if function.get("strict"):
            raise ValueError(f"tool {function['name']!r}: {error}") from None
        return {"type": "function", "function": {"name": function["name"], "parameters": _ANY_OBJECT}}
    return tool


def _line(error: Exception) -> str:
    line = " ".join(str(error).split())
    return line if len(line) <= 300 else line[:300] + "..."
