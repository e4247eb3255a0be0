"""From a request of a client to requests of the engine: prompts as ids, settings, grammars, each limit checked.

Everything that costs time (encoding, compiling a schema) happens here, off the event loop. Nothing here computes with
the model.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moonlet.generate.request import Grammar, Request
from moonlet.generate.sample import SamplingParams
from moonlet.model.model import CausalLM
from moonlet.serve.driver import Driver
from moonlet.serve.errors import bad
from moonlet.serve.limits import Limits, option
from moonlet.serve.protocol import ChatRequest, CompletionRequest, Sampling
from moonlet.serve.turn import NoCalls, Wanted, declared, read_wanted, turn_grammar
from moonlet.text import Tokenizer
from moonlet.text.chat import ChatForm, mark_ids, render, to_ids
from moonlet.text.chat.forms import ASSISTANT, END, SYSTEM, USER

if TYPE_CHECKING:
    from moonlet.generate.grammar import Grammars

_COMPLETION_TOKENS = 16  # what the OpenAI interface draws where max_tokens is left out


@dataclass(frozen=True)
class Served:
    """A model that is served.

    Attributes:
        name: what clients call it.
        model: its own, of which only the driver's thread may ask something.
        context: positions it has.
        vocab_size: rows of its embedding; ids of a prompt lie below.
        form: how it writes chats; None: it was trained on none.
        created: Unix time of its files.
        facts: what a page may want to know of it, plain JSON.
        grammars: makes the grammars of its tokenizer, the same ones each time.
    """

    name: str
    model: CausalLM
    tokenizer: Tokenizer
    driver: Driver
    context: int
    vocab_size: int
    form: ChatForm | None
    created: int
    facts: dict[str, Any]
    grammars: Callable[[], Grammars]


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
        ids = prompt_ids(prompt, served)
        prompts.append(ids)
        if asked.echo:
            echo.append(prompt if isinstance(prompt, str) else tokenizer.decode(ids, skip_special=True))
    _check_room(prompts, asked.max_tokens, "max_tokens", "prompt", served, limits)
    tokens = asked.max_tokens or min(_COMPLETION_TOKENS, limits.max_tokens)
    n = asked.n or 1
    requests: list[Request] = []
    repeats: Counter[tuple[int, ...]] = Counter()
    for read in prompts:
        room = min(tokens, served.context - len(read))
        params = _params(asked, room, asked.logprobs, tuple(asked.stop), served)
        for _ in range(n):
            requests.append(Request(read, params, frozenset({tokenizer.eos_id}), repeats[read]))
            repeats[read] += 1
    return Plan(tuple(requests), tuple(prompts), echo=tuple(text for text in echo for _ in range(n)))


def plan_chat(asked: ChatRequest, served: Served, limits: Limits) -> Plan:
    """What the engine is asked for POST /v1/chat/completions.

    Raises:
        ApiError: 400, naming the field.
    """
    form = chat_form(served)
    _check_common(asked, limits)
    limits.check("messages", len(asked.messages), "the number of messages", "messages")
    limits.check("tools", len(asked.tools or ()), "the number of tools", "tools")
    if asked.top_logprobs is not None:
        if not asked.logprobs:
            raise bad("top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
        limits.check("logprobs", asked.top_logprobs, "top_logprobs", "top_logprobs")
    thinking = asked.thinks or not form.thinks
    wanted = read_wanted(asked)
    ids = chat_ids(asked.messages, served, wanted.tools, thinking=thinking)
    tokens, param = _chat_tokens(asked)
    _check_room([ids], tokens, param, "messages", served, limits)
    before = sum(len(message.get("tool_calls") or ()) for message in asked.messages)
    grammar = _grammar(wanted, served, form, thinking, before, bool(before or asked.tools))
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    room = min(tokens or limits.max_tokens, served.context - len(ids))
    params = _params(asked, room, logprobs, (), served)
    ends = turn_ends(served)
    requests = tuple(Request(ids, params, ends, repeat, grammar) for repeat in range(asked.n or 1))
    names = tuple(tool["function"]["name"] for tool in wanted.tools)
    return Plan(requests, (ids,), tuple(asked.stop), names, before, thinking)


def chat_form(served: Served) -> ChatForm:
    """The form in which a model chats.

    Raises:
        ApiError: 400, it was trained on none.
    """
    if served.form is None:
        raise bad(
            f"{served.name} was trained on no form of chats; use /v1/completions, or start the server with --chat-form",
            "model",
            "no_chat_form",
        )
    return served.form


def chat_ids(
    messages: Sequence[Mapping[str, Any]],
    served: Served,
    tools: Sequence[Mapping[str, Any]],
    *,
    thinking: bool,
    answered: bool = False,
) -> tuple[int, ...]:
    """What a model reads of a conversation: up to where its answer begins, or all of one that is `answered`.

    Raises:
        ApiError: 400, as `chat_form`, or a message or tool for which the form has no place.
    """
    form = chat_form(served)
    # The newer name of the system's role; no form of the family knows it.
    messages = [{**m, "role": "system"} if m.get("role") == "developer" else m for m in messages]
    try:
        segments = render(
            messages,
            form,
            declared(tools) or None,
            thinking=thinking,
            add_generation_prompt=not answered,
            keep_thinking="last" if answered else "loop",
        )
        return tuple(to_ids(segments, served.tokenizer))
    except ValueError as error:
        raise bad(" ".join(str(error).split()), "tools" if str(error).startswith("tool ") else "messages") from None


def turn_ends(served: Served) -> frozenset[int]:
    """Ids that end an answer in a chat."""
    marks = mark_ids(served.tokenizer)
    return frozenset({served.tokenizer.eos_id, *(marks[mark] for mark in (END, USER, ASSISTANT, SYSTEM))})


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


def prompt_ids(prompt: str | Sequence[int], served: Served) -> tuple[int, ...]:
    """What a model reads of a prompt: a text's ids behind [BOS], or the ids that were given.

    Raises:
        ApiError: 400, an id that the tokenizer does not have, or no valid Unicode.
    """
    if isinstance(prompt, str):
        try:
            return (served.tokenizer.bos_id, *served.tokenizer.encode(prompt))
        except ValueError as error:
            raise bad(f"prompt: {error}", "prompt") from None
    ids = tuple(prompt)
    wrong = next((index for index in ids if not 0 <= index < served.tokenizer.vocab_size), None)
    if wrong is not None:
        shown = wrong if abs(wrong) < 1 << 63 else "a huge number"
        raise bad(f"prompt holds token {shown}; the vocabulary is 0..{served.tokenizer.vocab_size - 1}", "prompt")
    return ids


def _chat_tokens(asked: ChatRequest) -> tuple[int | None, str]:
    """How many tokens the client allows an answer, None where it does not say, and the field that is meant."""
    old, new = asked.max_tokens, asked.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise bad(f"max_tokens is {old} and max_completion_tokens {new}; give one of them", "max_tokens", "conflict")
    return (old, "max_tokens") if new is None else (new, "max_completion_tokens")


def _check_room(
    prompts: Sequence[Sequence[int]], tokens: int | None, param: str, source: str, served: Served, limits: Limits
) -> None:
    """Refuse what is too long. `tokens` were asked for in the field `param`, and the prompts came in `source`."""
    if tokens is not None:
        limits.check("max_tokens", tokens, param, param)
    for ids in prompts:
        limits.check("prompt_tokens", len(ids), "the prompt's number of tokens", source)
        if len(ids) + (tokens or 1) > served.context:
            wanted = f", with {param} {tokens} {len(ids) + tokens} in all" if tokens else ""
            raise bad(
                f"the prompt has {len(ids)} tokens{wanted}, and {served.name} has {served.context} positions: shorten "
                f"it{f' or lower {param}' if tokens else ''}",
                source,
                "context_length_exceeded",
            )


def _grammar(
    wanted: Wanted, served: Served, form: ChatForm, thinking: bool, before: int, calls: bool
) -> Grammar | None:
    """What the answer must be; None where anything will do."""
    if not wanted.tools and wanted.content is None:
        return NoCalls(served.tokenizer) if calls else None
    try:
        grammars = served.grammars()
    except ValueError as error:
        param = "tools" if wanted.tools else "response_format"
        raise bad(f"{served.name} cannot answer by a grammar: {error}", param) from None
    return turn_grammar(wanted, grammars, form, thinking=thinking, calls_before=before)


def too_long(what: str, limits: Limits) -> str:
    """What is said where time ran out."""
    return (
        f"{what} took longer than {limits.request_seconds:g} s, which is this server's limit; ask for less, or start "
        f"the server with {option('request_seconds')}"
    )
