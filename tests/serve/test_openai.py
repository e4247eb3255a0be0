"""The official client works as it is."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


HELLO = [{"role": "user", "content": "Hello"}]


def test_a_text_is_continued(client: openai.OpenAI) -> None:
    done = client.completions.create(model="tiny", prompt="Once", max_tokens=5, seed=1)
    assert done.object == "text_completion"
    assert done.model == "tiny"
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (5, 5)
    assert done.choices[0].finish_reason == "length"


def test_a_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt="Once", max_tokens=20, seed=3)
    pieces = list(client.completions.create(model="tiny", prompt="Once", max_tokens=20, seed=3, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert pieces[-1].choices[0].finish_reason == "length"
    assert len(pieces) > 5


def test_a_chat_is_answered_and_streams_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=20, seed=3)
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=20, seed=3, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == []
    # All but what was read before, which the second time is the whole prompt.
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../../etc/passwd")


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'other' is not served"):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError, match="max_tokens is 8193") as caught:
        client.completions.create(model="tiny", prompt="x", max_tokens=8193)
    assert caught.value.param == "max_tokens"
    assert caught.value.code == "max_tokens_limit"
