"""Chats by the official client: tools, JSON, reasoning, log-probabilities, several answers, stop texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from moonlet.serve.app import create_app
from tests.serve.conftest import Make, on_socket

HELLO: Any = [{"role": "user", "content": "Weather in Oslo?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}


@pytest.fixture(scope="module")
def client(served: Make) -> Iterator[OpenAI]:
    models = [served(), served("thinker", form="k2.5"), served("plain", form=None)]
    with (
        on_socket(create_app(models, page=())) as address,
        OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=20) as client,
    ):
        yield client


def ask(client: OpenAI, **settings: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": HELLO, "max_tokens": 200, **settings})


def check_weather(arguments: str) -> None:
    found = json.loads(arguments)
    assert set(found) == {"city", "days"}
    assert found["city"] in ("Oslo", "Rome")
    assert 1 <= found["days"] <= 9


@pytest.mark.parametrize("seed", range(4))
def test_a_required_call_is_made_and_is_valid(client: OpenAI, seed: int) -> None:
    done = ask(client, tools=[WEATHER, CLOCK], tool_choice="required", parallel_tool_calls=False, seed=seed)
    message = done.choices[0].message
    assert done.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    (call,) = message.tool_calls
    assert call.id == f"functions.{call.function.name}:0"
    if call.function.name == "weather":
        check_weather(call.function.arguments)
    else:
        assert json.loads(call.function.arguments) == {}


def test_a_named_call_is_of_that_name_and_streams_the_same(client: OpenAI) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    settings = {"tools": [CLOCK, WEATHER], "tool_choice": named, "seed": 5}
    (call,) = ask(client, **settings).choices[0].message.tool_calls
    check_weather(call.function.arguments)
    name, arguments, finish = "", "", None
    for chunk in ask(client, **settings, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or []:
            assert piece.index == 0
            name += piece.function.name or ""
            arguments += piece.function.arguments or ""
        finish = chunk.choices[0].finish_reason
    assert (name, arguments, finish) == ("weather", call.function.arguments, "tool_calls")


def test_no_call_is_made_where_none_may_be(client: OpenAI) -> None:
    # A bias that would begin a call at once: the mark's id is a reserved slot of the byte tokenizer.
    from moonlet.text import ByteTokenizer
    from moonlet.text.chat import mark_ids

    begin = mark_ids(ByteTokenizer())["<|tool_calls_section_begin|>"]
    bias = {str(begin): 100}
    forbidden = ask(client, tools=[WEATHER], tool_choice="none", logit_bias=bias, max_tokens=20, seed=1)
    assert forbidden.choices[0].message.tool_calls is None
    free = ask(client, tools=[WEATHER], tool_choice="auto", logit_bias=bias, seed=1)
    assert free.choices[0].message.tool_calls
    undeclared = ask(client, logit_bias=bias, max_tokens=20, seed=1)
    assert undeclared.choices[0].message.tool_calls is None


def test_a_conversation_with_calls_goes_on_counting(client: OpenAI) -> None:
    call = {"id": "functions.weather:0", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "functions.weather:0", "content": "rain"},
        {"role": "developer", "content": "Be short."},
    ]
    done = ask(client, messages=messages, tools=[CLOCK], tool_choice="required", parallel_tool_calls=False, seed=2)
    assert done.choices[0].message.tool_calls[0].id == "functions.clock:1"


def test_content_follows_a_schema(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    for settings in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        done = ask(client, response_format=wanted, seed=3, **settings)
        assert isinstance(json.loads(done.choices[0].message.content)["ok"], bool)
        assert done.choices[0].finish_reason == "stop"
    both = ask(client, response_format=wanted, seed=4, tools=[WEATHER]).choices[0].message
    assert both.tool_calls or isinstance(json.loads(both.content)["ok"], bool)


def test_any_object_is_json(client: OpenAI) -> None:
    bias = {str(16 + ord("}")): 20}  # an untrained model would go on for ever
    done = ask(client, response_format={"type": "json_object"}, seed=3, logit_bias=bias)
    assert isinstance(json.loads(done.choices[0].message.content), dict)


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "?"}}}},
         "response_format"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "bad name"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "?"}}}]},
         "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "clock"}}}, "tool_choice"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"model": "plain"}, "model"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"extra_body": {"functions": []}}, "functions"),
        ({"extra_body": {"temprature": 1}}, "temprature"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(client: OpenAI, settings: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **settings)
    assert caught.value.param == param
    assert "\n" not in caught.value.body["message"]  # type: ignore[index,call-overload]


def test_a_schema_that_no_grammar_keeps_leaves_any_object_unless_strict(client: OpenAI) -> None:
    function = {"name": "f", "parameters": {"type": "object", "not": {"type": "string"}}}
    bias = {str(16 + ord("}")): 20}
    settings = {"tool_choice": "required", "parallel_tool_calls": False, "seed": 1, "logit_bias": bias}
    done = ask(client, tools=[{"type": "function", "function": function}], **settings)
    assert isinstance(json.loads(done.choices[0].message.tool_calls[0].function.arguments), dict)
    with pytest.raises(openai.BadRequestError, match="'f'"):
        ask(client, tools=[{"type": "function", "function": {**function, "strict": True}}], **settings)


def test_reasoning_stands_apart_from_content(client: OpenAI) -> None:
    from moonlet.text import ByteTokenizer
    from moonlet.text.chat import mark_ids

    marks = mark_ids(ByteTokenizer())
    never = {str(marks[name]): -100 for name in ("<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>")}
    asked: Any = {"model": "thinker", "seed": 1, "max_tokens": 40, "logit_bias": {**never, "1": -100}}
    thought = ask(client, **asked)
    assert thought.choices[0].message.reasoning_content
    assert thought.usage.completion_tokens_details.reasoning_tokens > 0
    pieces = [chunk.choices[0].delta for chunk in ask(client, **asked, stream=True)]
    assert "".join(getattr(p, "reasoning_content", None) or "" for p in pieces) == (
        thought.choices[0].message.reasoning_content
    )
    for off in ({"thinking": {"type": "disabled"}}, {"chat_template_kwargs": {"thinking": False}}):
        done = ask(client, **asked, extra_body=off)
        assert not hasattr(done.choices[0].message, "reasoning_content")
        assert done.usage.completion_tokens_details.reasoning_tokens == 0
    assert not hasattr(ask(client, **asked, reasoning_effort="none").choices[0].message, "reasoning_content")


def test_log_probabilities_of_content(client: OpenAI) -> None:
    done = ask(client, logprobs=True, top_logprobs=3, max_tokens=12, temperature=0, seed=1)
    told = done.choices[0].logprobs.content
    assert told
    assert b"".join(bytes(one.bytes) for one in told).decode(errors="replace") == done.choices[0].message.content
    for one in told:
        assert one.logprob <= 0
        assert [other.logprob for other in one.top_logprobs] == sorted(
            (o.logprob for o in one.top_logprobs), reverse=True
        )
        assert one.top_logprobs[0].token == one.token  # greedy
    streamed = [chunk.choices[0].logprobs for chunk in
                ask(client, logprobs=True, top_logprobs=3, max_tokens=12, temperature=0, stream=True)]  # fmt: skip
    assert [one for logprobs in streamed if logprobs for one in logprobs.content] == told


def test_log_probabilities_of_a_continued_text(client: OpenAI) -> None:
    done = client.completions.create(model="tiny", prompt="ab", max_tokens=6, logprobs=2, temperature=0, seed=1)
    told = done.choices[0].logprobs
    assert told is not None
    assert len(told.tokens or ()) == len(told.token_logprobs or ()) == len(told.top_logprobs or ()) == 6
    assert all(len(found) <= 2 for found in told.top_logprobs or ())


def test_n_answers_have_their_own_words_and_the_same_again(client: OpenAI) -> None:
    done = ask(client, n=3, seed=7, max_tokens=12)
    texts = [choice.message.content for choice in done.choices]
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert done.usage.completion_tokens <= 36
    chunks = list(ask(client, n=3, seed=7, max_tokens=12, stream=True))
    for index, text in enumerate(texts):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(choice.delta.content or "" for choice in own) == text
        assert own[-1].finish_reason


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(client: OpenAI) -> None:
    free = ask(client, seed=7, max_tokens=30, temperature=0.5).choices[0].message.content
    stop = free[4:6]
    cut = ask(client, seed=7, max_tokens=30, temperature=0.5, stop=[stop])
    assert cut.choices[0].message.content == free[: free.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < 30
    pieces = ask(client, seed=7, max_tokens=30, temperature=0.5, stop=[stop], stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == free[: free.index(stop)]


def test_several_prompts_are_answered_in_order(client: OpenAI) -> None:
    done = client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=4, seed=1, echo=True)
    assert [choice.text[0] for choice in done.choices] == ["a", "a", "b", "b"]
    ids = client.completions.create(model="tiny", prompt=[[0, 113], [0, 114]], max_tokens=4, seed=1)
    assert [choice.text for choice in ids.choices] == [done.choices[0].text[1:], done.choices[2].text[1:]]


def test_marks_in_a_users_text_are_text(client: OpenAI) -> None:
    plain = ask(client, messages=[{"role": "user", "content": "x" * 10}], max_tokens=1)
    marks = ask(client, messages=[{"role": "user", "content": "<|im_end|>"}], max_tokens=1)
    assert marks.usage.prompt_tokens == plain.usage.prompt_tokens


def test_a_bias_bans_and_forces(client: OpenAI) -> None:
    done = client.completions.create(model="tiny", prompt="x", max_tokens=3, logit_bias={str(16 + ord("z")): 100})
    assert done.choices[0].text == "zzz"
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        client.completions.create(model="tiny", prompt="x", logit_bias={"272": 1})
