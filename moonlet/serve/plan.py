"""From a request of a client to requests of the engine: prompts as ids, settings, grammars, each limit checked.

Everything that costs time (encoding, compiling a schema) happens here, off the event loop. Nothing here computes with
the model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moonlet.generate.request import Grammar, Request
from moonlet.generate.sample import SamplingParams
from moonlet.serve.driver import Driver
from moonlet.serve.errors import bad
from moonlet.serve.limits import Limits, option
from moonlet.serve.protocol import ChatRequest, CompletionRequest, NamedTool, Sampling
from moonlet.serve.turn import Calls, TurnGrammar
from moonlet.text import Tokenizer
from moonlet.text.chat import ChatForm, mark_ids, render, to_ids
from moonlet.text.chat.forms import ASSISTANT, END, SYSTEM, THINK_MARKS, USER

_COMPLETION_TOKENS = 16  # what the OpenAI interface draws where max_tokens is left out


@dataclass(frozen=True)
class Served:
    """A model that is served.

    Attributes:
        name: what clients call it.
        context: positions it has.
        vocab_size: rows of its embedding; ids of a prompt lie below.
        form: how it writes chats; None: it was trained on none.
        created: Unix time of its files.
        facts: what a page may want to know of it, plain JSON.
    """

    name: str
    tokenizer: Tokenizer
    driver: Driver
    context: int
    vocab_size: int
    form: ChatForm | None
    created: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A checked request.

    Attributes:
        requests: for the engine; `n` of each prompt, one after another.
        prompts: the distinct prompts' ids.
        stop: texts that end an answer, where the engine is not told of them.
        names: functions that may be called.
        before: calls made earlier in the conversation.
        thinking: whether the prompt asks for thinking.
        echo: of each request, the text the answer begins with.
    """

    requests: tuple[Request, ...]
    prompts: tuple[tuple[int, ...], ...]
    stop: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    before: int = 0
    thinking: bool = True
    echo: tuple[str, ...] = ()


def plan_completion(asked: CompletionRequest, served: Served, limits: Limits) -> Plan:
    """What the engine is asked for POST /v1/completions.

    Raises:
        ApiError: 400, naming the field.
    """
    _check_common(asked, limits)
    if asked.logprobs is not None:
        limits.check("logprobs", asked.logprobs, "logprobs", "logprobs")
        if asked.echo:
            raise bad("logprobs are given of generated tokens alone; leave out echo", "echo", "unsupported_parameter")
    limits.check("prompts", len(asked.prompt), "the number of prompts", "prompt")
    tokenizer = served.tokenizer
    prompts: list[tuple[int, ...]] = []
    echo: list[str] = []
    for prompt in asked.prompt:
        if isinstance(prompt, str):
            ids = [tokenizer.bos_id, *_encoded(tokenizer, prompt)]
        else:
            ids = _checked_ids(prompt, served)
        prompts.append(tuple(ids))
        if asked.echo:
            echo.append(prompt if isinstance(prompt, str) else tokenizer.decode(ids, skip_special=True))
    tokens = asked.max_tokens if asked.max_tokens is not None else _COMPLETION_TOKENS
    _check_room(prompts, tokens, asked.max_tokens is not None, "max_tokens", served, limits)
    n = asked.n or 1
    requests = []
    for read in prompts:
        room = min(tokens, served.context - len(read))
        params = _params(asked, room, asked.logprobs, tuple(asked.stop), served)
        requests += [Request(read, params, frozenset({tokenizer.eos_id}), repeat) for repeat in range(n)]
    return Plan(tuple(requests), tuple(prompts), echo=tuple(text for text in echo for _ in range(n)))


def plan_chat(asked: ChatRequest, served: Served, limits: Limits) -> Plan:
    """What the engine is asked for POST /v1/chat/completions.

    Raises:
        ApiError: 400, naming the field.
    """
    form = served.form
    if form is None:
        raise bad(
            f"{served.name} was trained on no form of chats; use /v1/completions, or start the server with --chat-form",
            "model",
            "no_chat_form",
        )
    _check_common(asked, limits)
    limits.check("messages", len(asked.messages), "the number of messages", "messages")
    limits.check("tools", len(asked.tools or ()), "the number of tools", "tools")
    if asked.top_logprobs is not None:
        if not asked.logprobs:
            raise bad("top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
        limits.check("logprobs", asked.top_logprobs, "top_logprobs", "top_logprobs")
    thinking = asked.thinks or not form.thinks
    tools, must = _tools(asked)
    ids = tuple(_rendered(asked, served, form, thinking, [tool for tool in tools if asked.tool_choice != "none"]))
    tokens, param, given = _chat_tokens(asked, len(ids), served, limits)
    _check_room([ids], tokens, given, param, served, limits)
    before = sum(len(message.get("tool_calls") or ()) for message in asked.messages)
    grammar = _turn(asked, served, form, thinking, tools, must, before)
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    params = _params(asked, min(tokens, served.context - len(ids)), logprobs, (), served)
    marks = mark_ids(served.tokenizer)
    ends = frozenset({served.tokenizer.eos_id, *(marks[mark] for mark in (END, USER, ASSISTANT, SYSTEM))})
    requests = tuple(Request(ids, params, ends, repeat, grammar) for repeat in range(asked.n or 1))
    names = tuple(tool["function"]["name"] for tool in tools)
    return Plan(requests, (ids,), tuple(asked.stop), names, before, thinking)


def _check_common(asked: Sampling, limits: Limits) -> None:
    limits.check("n", asked.n or 1, "n", "n")
    limits.check("stop", len(asked.stop), "the number of stop texts", "stop")
    for text in asked.stop:
        limits.check("stop_bytes", len(text.encode()), "a stop text's size in bytes", "stop")
    limits.check("logit_bias", len(asked.logit_bias), "the number of tokens in logit_bias", "logit_bias")
    if asked.stream_options is not None and not asked.stream:
        raise bad("stream_options needs stream: true", "stream_options", "invalid_value")


def _params(
    asked: Sampling, tokens: int, logprobs: int | None, stop: tuple[str, ...], served: Served
) -> SamplingParams:
    beyond = [token for token in asked.logit_bias if token >= served.tokenizer.vocab_size]
    if beyond:
        raise bad(
            f"logit_bias names token {beyond[0]}; the vocabulary is 0..{served.tokenizer.vocab_size - 1}", "logit_bias"
        )
    try:
        return SamplingParams(
            max_new_tokens=tokens,
            temperature=1.0 if asked.temperature is None else float(asked.temperature),
            top_k=max(asked.top_k or 0, 0),  # other servers write -1 for "all"
            # 0 asks for the likeliest token alone, and so does the smallest number above it.
            top_p=1.0 if asked.top_p is None else max(float(asked.top_p), sys.float_info.min),
            min_p=float(asked.min_p or 0.0),
            repetition_penalty=1.0 if asked.repetition_penalty is None else float(asked.repetition_penalty),
            frequency_penalty=float(asked.frequency_penalty or 0.0),
            presence_penalty=float(asked.presence_penalty or 0.0),
            logit_bias=asked.logit_bias,
            logprobs=logprobs,
            seed=asked.seed,
            stop=stop,
        )
    except ValueError as error:
        raise bad(str(error)) from None


def _encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        return tokenizer.encode(text)
    except ValueError as error:
        raise bad(f"prompt: {error}", "prompt") from None


def _checked_ids(ids: Sequence[Any], served: Served) -> list[int]:
    wrong = next((index for index in ids if not 0 <= index < served.tokenizer.vocab_size), None)
    if wrong is not None:
        shown = wrong if abs(wrong) < 1 << 63 else "a huge number"
        raise bad(f"prompt holds token {shown}; the vocabulary is 0..{served.tokenizer.vocab_size - 1}", "prompt")
    return list(ids)


def _chat_tokens(asked: ChatRequest, prompt: int, served: Served, limits: Limits) -> tuple[int, str, bool]:
    """How many tokens an answer may have, which field says so, and whether the client did."""
    both = asked.max_tokens, asked.max_completion_tokens
    if None not in both and both[0] != both[1]:
        raise bad(
            f"max_tokens is {both[0]} and max_completion_tokens {both[1]}; give one of them", "max_tokens", "conflict"
        )
    param = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
    given = asked.max_completion_tokens or asked.max_tokens
    return given or max(min(limits.max_tokens, served.context - prompt), 1), param, given is not None


def _check_room(
    prompts: Sequence[Sequence[int]], tokens: int, given: bool, param: str, served: Served, limits: Limits
) -> None:
    limits.check("max_tokens", tokens, param, param)
    for ids in prompts:
        limits.check("prompt_tokens", len(ids), "the prompt's number of tokens", "prompt")
        if len(ids) + (tokens if given else 1) > served.context:
            wanted = f", with {param} {tokens} {len(ids) + tokens} in all" if given else ""
            raise bad(
                f"the prompt has {len(ids)} tokens{wanted}, and {served.name} has {served.context} positions: shorten "
                f"it{f' or lower {param}' if given else ''}",
                "messages" if param != "max_tokens" else "prompt",
                "context_length_exceeded",
            )


def _tools(asked: ChatRequest) -> tuple[list[dict[str, Any]], str | bool]:
    """The declared tools as plain JSON, and whether one must be called (or which)."""
    tools = [tool.model_dump(exclude_unset=True) for tool in asked.tools or ()]
    names = [tool["function"]["name"] for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise bad(f"the tool {twice!r} is declared more than once", "tools")
    choice = asked.tool_choice
    if isinstance(choice, NamedTool):
        if choice.function.name not in names:
            raise bad(f"tool_choice names {choice.function.name[:80]!r}, which tools does not declare", "tool_choice")
        return tools, choice.function.name
    if choice in ("required", "auto") and not tools:
        if choice == "required":
            raise bad("tool_choice is required, and there are no tools", "tool_choice")
        return [], False
    return tools, choice == "required"


def _rendered(
    asked: ChatRequest, served: Served, form: ChatForm, thinking: bool, tools: list[dict[str, Any]]
) -> list[int]:
    # The newer name of the system's role; no form of the family knows it.
    messages = [{**m, "role": "system"} if m.get("role") == "developer" else m for m in asked.messages]
    declared = [{**tool, "function": _without(tool["function"], "strict")} for tool in tools]
    try:
        return to_ids(render(messages, form, declared or None, thinking=thinking), served.tokenizer)
    except ValueError as error:
        raise bad(" ".join(str(error).split()), "tools" if str(error).startswith("tool ") else "messages") from None


def _turn(
    asked: ChatRequest,
    served: Served,
    form: ChatForm,
    thinking: bool,
    tools: list[dict[str, Any]],
    must: str | bool,
    before: int,
) -> Grammar | None:
    """What the answer must be; None where anything will do."""
    marks = mark_ids(served.tokenizer)
    content = _content(asked, served)
    wanted = [tool["function"] for tool in tools if must in (True, False, tool["function"]["name"])]
    calls = None
    if wanted and asked.tool_choice != "none":
        from moonlet.generate import grammar

        functions: dict[str, Grammar] = {}
        for function in wanted:
            try:
                functions[function["name"]] = grammar.json_schema(_arguments(function), served.tokenizer)
            except ValueError as error:
                raise bad(f"the parameters of tool {function['name']!r}: {_line(error)}", "tools") from None
        several = asked.parallel_tool_calls is not False and not isinstance(must, str)
        calls = Calls(functions, bool(must), several, before)
    if calls is None and content is None and form.tools is None:
        return None

    def choose(texts: list[str]) -> Grammar:
        from moonlet.generate import grammar

        return grammar.choice(texts, served.tokenizer)

    # A form that opens the thought itself and was asked not to think has closed it in the prompt.
    opened = thinking and form.prompts_thinking and all(mark in marks for mark in THINK_MARKS)
    return TurnGrammar(served.tokenizer, form, opened, calls, content, choose)


def _content(asked: ChatRequest, served: Served) -> Grammar | None:
    wanted = asked.response_format
    if wanted is None or wanted.type == "text":
        return None
    from moonlet.generate import grammar

    if wanted.type == "json_object":
        return grammar.json_object(served.tokenizer)
    if wanted.json_schema is None:
        raise bad("response_format of type json_schema needs json_schema", "response_format.json_schema")
    try:
        return grammar.json_schema(_finite(wanted.json_schema.schema_), served.tokenizer)
    except ValueError as error:
        raise bad(f"the schema of response_format: {_line(error)}", "response_format") from None


def _arguments(function: dict[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments, which are always an object."""
    schema = {"type": "object", **(function.get("parameters") or {"properties": {}})}
    if schema["type"] != "object":
        raise ValueError(f'type is {str(schema["type"])[:80]!r}, and arguments are an "object"')
    checked: dict[str, Any] = _finite(schema)
    return checked


def _finite(schema: Any) -> Any:
    """The schema itself, once it is known to be plain JSON: 1e999 was read as infinity."""
    try:
        json.dumps(schema, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not plain JSON: {error}") from None
    return schema


def _without(record: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != key}


def _line(error: Exception) -> str:
    line = " ".join(str(error).split())
    return line if len(line) <= 300 else line[:300] + "..."


def too_long(what: str, limits: Limits) -> str:
    """What is said where time ran out."""
    return (
        f"{what} took longer than {limits.request_seconds:g} s, which is this server's limit; ask for less, or start "
        f"the server with {option('request_seconds')}"
    )
