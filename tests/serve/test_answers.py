"""Events become answers: what is told of tokens fits the text they make."""

from __future__ import annotations

from moonlet.generate.request import Event, Likely
from moonlet.serve.answers import ChatAnswer, CompletionAnswer
from moonlet.serve.limits import Limits
from moonlet.serve.plan import plan_chat, plan_completion
from moonlet.serve.protocol import ChatRequest, CompletionRequest, read
from moonlet.text import ByteTokenizer
from tests.serve.conftest import Make

BYTES = ByteTokenizer()


def told(text: str) -> list[Event]:
    """A token a byte; the text of a character comes with its last."""
    events, stream = [], BYTES.detokenizer()
    for token in BYTES.encode(text):
        likely = (Likely(BYTES.encode("!")[0], -0.5),)
        events.append(Event(0, token, stream.push(token), Likely(token, -2.0), likely))
    return [*events, Event(0, finish="stop")]


def completion(served: Make) -> CompletionAnswer:
    asked = read(b'{"prompt": "ab", "logprobs": 1}', CompletionRequest)
    one = served()
    return CompletionAnswer(plan_completion(asked, one, Limits()), 0, one)


def test_text_offsets_are_places_in_the_text(served: Make) -> None:
    answer, text = completion(served), "aé€b"
    pieces = [piece for event in told(text) for piece in answer.read(event)]
    whole = answer.whole()
    assert whole["text"] == "".join(piece["text"] for piece in pieces) == text
    assert whole["logprobs"]["text_offset"] == [0, 1, 1, 2, 2, 2, 3]
    assert whole["logprobs"]["tokens"][0] == text[0]
    assert whole["logprobs"]["tokens"][-1] == text[3]
    for name, values in whole["logprobs"].items():
        assert [value for piece in pieces for value in piece["logprobs"][name]] == values


def test_the_drawn_token_is_always_among_the_likeliest(served: Make) -> None:
    answer = completion(served)
    for event in told("x!"):
        answer.read(event)
    assert answer.whole()["logprobs"]["top_logprobs"] == [{"!": -0.5, "x": -2.0}, {"!": -2.0}]


def test_every_token_of_a_thought_counts_as_one(served: Make) -> None:
    thinker = served(form="k2.5")
    asked = read(b'{"messages": [{"role": "user", "content": "x"}]}', ChatRequest)
    answer = ChatAnswer(plan_chat(asked, thinker, Limits()), 0, thinker)
    for event in told("n€"):
        answer.read(event)
    assert answer.whole()["message"]["reasoning_content"] == "n€"
    assert answer.reasoned == answer.drawn == 4
