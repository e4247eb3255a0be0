"""Under a grammar every text is in its language, whatever the model prefers; what cannot be kept is refused."""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch

from moonlet.generate.grammar import CompiledGrammar, Grammars
from moonlet.generate.request import Request
from moonlet.generate.sample import SamplingParams
from moonlet.generate.sampler import Sampler
from moonlet.model.model import CausalLM
from moonlet.text import Tokenizer
from moonlet.text.bpe import train_bpe
from moonlet.text.byte import ByteTokenizer
from moonlet.text.chat import Parsed, form_named, mark_ids, parse_ids
from moonlet.text.word import WordTokenizer
from tests.generate.schemas import random_object, random_schema, valid

pytest.importorskip("llguidance")

BYTES = ByteTokenizer()
GRAMMARS = Grammars(BYTES)
MOST = 4000  # tokens, more than any text here takes


def check(text: str, schema: dict[str, Any]) -> None:
    assert valid(json.loads(text), schema), (text, schema)
    if "jsonschema" in sys.modules:
        sys.modules["jsonschema"].validate(json.loads(text), schema)


def texts_of(
    grammar: CompiledGrammar, seed: int, tokenizer: Tokenizer = BYTES, ends: frozenset[int] = frozenset()
) -> list[int]:
    """The ids of one text by a model that likes every token as well as every other."""
    ends = ends or frozenset({tokenizer.eos_id})
    params = SamplingParams(temperature=1.0, seed=seed)
    sampler = Sampler(Request((0,), params, ends, grammar=grammar), tokenizer, tokenizer.vocab_size)
    logits = torch.zeros(tokenizer.vocab_size)
    ids: list[int] = []
    while not sampler.done and len(ids) < MOST:
        token = sampler.draw(logits).token
        if token in ends:
            break
        ids.append(token)
    assert len(ids) < MOST
    return ids


def test_json_of_a_random_schema_is_valid() -> None:
    draw = random.Random(0)
    for seed in range(60):
        schema = random_schema(draw)
        check(BYTES.decode(texts_of(GRAMMARS.json_schema(schema), seed)), schema)


@pytest.mark.slow
def test_an_untrained_model_writes_500_valid_texts_of_500(tiny_model: Callable[..., CausalLM]) -> None:
    from moonlet.generate.decoding import new_step

    model = tiny_model(vocab_size=BYTES.vocab_size, max_position_embeddings=MOST)
    step, draw = new_step(model), random.Random(1)
    for seed in range(500):
        schema = random_schema(draw)
        params = SamplingParams(temperature=1.0, seed=seed)
        request = Request((0,), params, frozenset({BYTES.eos_id}), grammar=GRAMMARS.json_schema(schema))
        sampler, ids, cache = Sampler(request, BYTES, BYTES.vocab_size), [BYTES.bos_id], model.new_cache(1, MOST)
        while not sampler.done:
            token = sampler.draw(step(torch.tensor(ids[-1:]), cache)[0]).token
            if token == BYTES.eos_id:
                break
            ids.append(token)
        check(BYTES.decode(ids[1:]), schema)


def test_a_json_object_is_one() -> None:
    for seed in range(20):
        assert isinstance(json.loads(BYTES.decode(texts_of(GRAMMARS.json_object(), seed))), dict)


def test_white_space_between_tokens_is_bounded() -> None:
    grammar = GRAMMARS.json_schema({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]})
    matcher = grammar.matcher()
    for token in BYTES.encode("{ "):
        matcher.take(token)
    assert tokens(matcher.allowed()) == BYTES.encode('"')
    for text in ('{"a":null}', '{"a": null}', '{\n    "a": null\n}'):
        assert accepts(grammar, text)


def tokens(bits: bytes) -> list[int]:
    return [i for i in range(8 * len(bits)) if bits[i // 8] >> i % 8 & 1]


def accepts(grammar: CompiledGrammar, text: str, tokenizer: Tokenizer = BYTES) -> bool:
    """Whether the whole text is in the language, and that its tokens were allowed."""
    matcher = grammar.matcher()
    for token in tokenizer.encode(text):
        if token not in tokens(matcher.allowed()):
            return False
        matcher.take(token)
    return tokenizer.eos_id in tokens(matcher.allowed())


def test_a_schema_true_is_any_value_and_references_are_followed() -> None:
    assert accepts(GRAMMARS.json_schema(True), "[1, 2.5e3, null]")
    tree = {
        "$defs": {"t": {"type": "object", "properties": {"l": {"$ref": "#/$defs/t"}}, "additionalProperties": False}},
        "$ref": "#/$defs/t",
    }
    assert accepts(GRAMMARS.json_schema(tree), '{"l": {"l": {}}}')
    assert not accepts(GRAMMARS.json_schema(tree), '{"l": {"l": 1}}')


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        (r"a/b\/[0-9]{2,4}", "a/b/123", "a/b/1"),
        ("(yes|no)\n", "yes\n", "yes"),
        (r"\\\"x\d", '\\"x7', "x7"),
        ("[äö]+", "äöä", "a"),
    ],
)
def test_a_regular_expression_matches_whole_texts(pattern: str, inside: str, outside: str) -> None:
    grammar = GRAMMARS.regex(pattern)
    assert accepts(grammar, inside)
    assert not accepts(grammar, outside)
    assert not accepts(grammar, inside + "#")
    assert re.fullmatch(pattern, BYTES.decode(texts_of(grammar, 3)))


def test_a_choice_is_one_of_its_options() -> None:
    options = ["yes", "yes, please", 'no "way"\n/', "nein\\"]
    grammar = GRAMMARS.choice(options)
    assert {BYTES.decode(texts_of(grammar, seed)) for seed in range(60)} == set(options)


def test_a_matcher_is_done_when_nothing_may_follow() -> None:
    matcher = GRAMMARS.choice(["ab", "abc"]).matcher()
    for letter, done in zip("abc", (False, False, True), strict=True):
        matcher.take(BYTES.encode(letter)[0])
        assert matcher.done == done


def test_matchers_of_one_grammar_do_not_meet() -> None:
    grammar = GRAMMARS.choice(["ab", "cd"])
    first, second = grammar.matcher(), grammar.matcher()
    first.take(BYTES.encode("a")[0])
    assert tokens(second.allowed()) == BYTES.encode("ac")


def test_a_token_that_is_not_allowed_is_refused() -> None:
    matcher = GRAMMARS.choice(["ab"]).matcher()
    with pytest.raises(ValueError, match="the grammar cannot be followed behind token"):
        matcher.take(BYTES.encode("b")[0])
    assert not matcher.done


# Tool calls.

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "parameters": {
                "type": "object",
                "properties": {"q": {"type": "string", "maxLength": 9}, "n": {"type": "integer", "minimum": 1}},
                "required": ["q"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
SCHEMAS: dict[str, dict[str, Any]] = {
    "find": TOOLS[0]["function"]["parameters"],  # type: ignore[index]
    "now": {"type": "object", "additionalProperties": False},
}
END = frozenset({mark_ids(BYTES)["<|im_end|>"]})


def called(form: str, seed: int, **settings: Any) -> Parsed:
    grammar = GRAMMARS.tool_calls(TOOLS, form_named(form), **settings)
    thinking = settings.get("thinking", True)
    return parse_ids(texts_of(grammar, seed, ends=END), form_named(form), BYTES, thinking=thinking)


@pytest.mark.parametrize("form", ["k2", "k2-0905", "k2-thinking", "k2.5", "kimi-linear"])
def test_arguments_of_a_call_are_valid_under_its_schema(form: str) -> None:
    for seed in range(6):
        calls = called(form, seed).tool_calls
        assert calls
        for call in calls:
            assert call.problem is None
            check(call.arguments, SCHEMAS[call.name])


@pytest.mark.slow
def test_500_tool_calls_of_500_are_valid() -> None:
    draw = random.Random(2)
    form = form_named("k2-0905")
    for seed in range(500):
        schema = random_object(draw, 2)
        tool = {"type": "function", "function": {"name": f"f{seed}", "parameters": schema}}
        grammar = GRAMMARS.tool_calls([tool], form, most=1)
        (call,) = parse_ids(texts_of(grammar, seed, ends=END), form, BYTES).tool_calls
        assert (call.name, call.problem) == (f"f{seed}", None)
        check(call.arguments, schema)


def test_calls_are_numbered_as_the_form_numbers_them() -> None:
    for form, first in (("k2", 0), ("k2-0905", 5)):
        calls = [call for seed in range(12) for call in called(form, seed, calls_before=5).tool_calls]
        assert {call.id.split(":")[1] for call in calls} >= {str(first), str(first + 1)}


def test_a_named_tool_is_the_one_that_is_called() -> None:
    names = {call.name for seed in range(8) for call in called("k2-0905", seed, choice="now").tool_calls}
    assert names == {"now"}


def test_most_calls_of_a_turn() -> None:
    assert {len(called("k2-0905", seed, most=1).tool_calls) for seed in range(10)} == {1}
    assert max(len(called("k2-0905", seed, most=3).tool_calls) for seed in range(20)) == 3


def test_auto_may_call_and_may_not() -> None:
    turns = [called("k2-0905", seed, choice="auto") for seed in range(40)]
    assert {bool(turn.tool_calls) for turn in turns} == {True, False}
    assert any(turn.content for turn in turns)


def test_a_thought_comes_first_where_the_form_has_one() -> None:
    assert any(called("k2.5", seed).reasoning for seed in range(5))
    assert not any(called("k2.5", seed, thinking=False).reasoning for seed in range(5))
    grammar = GRAMMARS.json_schema({"type": "boolean"}, form=form_named("k2.5"))
    turn = parse_ids(texts_of(grammar, 1, ends=END), form_named("k2.5"), BYTES)
    assert turn.reasoning
    assert turn.content in ("true", "false")


def test_a_mark_spelt_in_a_string_stays_a_string() -> None:
    schema = {"type": "string", "pattern": r"^<\|tool_call_end\|>$"}
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {"a": schema}, "required": ["a"]}},
    }
    grammar = GRAMMARS.tool_calls([tool], form_named("k2-0905"), most=1)
    (call,) = parse_ids(texts_of(grammar, 0, ends=END), form_named("k2-0905"), BYTES).tool_calls
    assert call.decoded()["a"] == "<|tool_call_end|>"


# Tokenizers.


def trained(kind: str) -> Tokenizer:
    texts = ['{"name": "Lily", "age": 3, "tags": ["a b", "c"]}\n', "Once upon a time there was ä tree. "] * 20
    if kind == "bpe":
        return train_bpe(texts, 300)
    pytest.importorskip("sentencepiece")
    from moonlet.text.sentencepiece import train_sentencepiece

    return train_sentencepiece(texts, 320)


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
def test_every_kind_whose_text_is_its_tokens_joined(kind: str) -> None:
    tokenizer = trained(kind)
    grammars, draw = Grammars(tokenizer), random.Random(3)
    for seed in range(15):
        schema = random_schema(draw)
        text = tokenizer.decode(texts_of(grammars.json_schema(schema), seed, tokenizer))
        check(text, schema)
    grammar = grammars.json_schema({"type": "object"})
    assert accepts(grammar, '{"name": "Lily", "age": 3}', tokenizer)
    calls = grammars.tool_calls(TOOLS, form_named("k2-0905"), most=1)
    ids = texts_of(calls, 0, tokenizer, frozenset({mark_ids(tokenizer)["<|im_end|>"]}))
    (call,) = parse_ids(ids, form_named("k2-0905"), tokenizer).tool_calls
    check(call.arguments, SCHEMAS[call.name])


def test_a_word_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="a grammar needs a tokenizer whose text is its tokens joined"):
        Grammars(WordTokenizer(["a"]))


# What is refused, and how fast.


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def pairs(n: int) -> dict[str, Any]:
    return {"allOf": [{"anyOf": [{"required": [f"a{i}"]}, {"properties": {f"a{i}": {}}}]} for i in range(n)]}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (nested(10_000), "the JSON schema is nested deeper than 64 levels"),
        ({"properties": {f"p{i}": {} for i in range(1001)}}, "an object of 1001 members; at most 1000 are read"),
        ({"enum": ["x" * 1000] * 100}, "characters; at most 65536 are read"),
        ({"enum": list(range(70_000))}, "more than 65536 values"),
        (False, "the JSON schema is 'False'; it must be an object"),
        ([], "it must be an object"),
        ({"type": "nonsense"}, "nonsense"),
        ({"not": {}}, "not"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"$ref": "#"}, "no text fits it"),
        ({"$ref": "http://127.0.0.1/x.json"}, "retriev"),
        ({"$ref": "file:///etc/passwd"}, "retriev"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "integer", "multipleOf": 999_999_937}, "fuel"),
        (pairs(24), "the grammar cannot be used"),
        ({"type": "object", "x-guidance": {"lenient": True}}, "x-guidance"),
        ({"const": float("nan")}, "is no JSON"),
        ({"const": {1, 2}}, "is no JSON"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_soon(schema: Any, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        GRAMMARS.json_schema(schema)
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(a|b)*a(a|b){20}$"},
        {"type": "string", "pattern": "^((a{1,500}){1,500}){1,500}$"},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(999)}},
        {"type": "object", "patternProperties": {"^(a|b)*a(a|b){18}$": {"type": "integer"}}},
        {"$defs": {"a": {"properties": {"n": {"$ref": "#/$defs/a"}}, "required": ["n"]}}, "$ref": "#/$defs/a"},
    ],
)
def test_a_hostile_schema_that_compiles_is_followed_within_bounds_or_ends_in_an_error(schema: dict[str, Any]) -> None:
    began = time.monotonic()
    draw = random.Random(0)
    with suppress(ValueError):
        matcher = GRAMMARS.json_schema(schema).matcher()
        for _ in range(100):
            if matcher.done:
                break
            matcher.take(draw.choice([i for i in tokens(matcher.allowed()) if i != BYTES.eos_id] or [BYTES.eos_id]))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GRAMMARS.regex("("), "unclosed group"),
        (lambda: GRAMMARS.regex(r"(a)\1"), "backreferences"),
        (lambda: GRAMMARS.regex("a\\"), "the grammar cannot be used"),
        (lambda: GRAMMARS.regex(""), "empty"),
        (lambda: GRAMMARS.regex("a" * 70_000), "70000 characters; at most 65536"),
        (lambda: GRAMMARS.choice([]), "a choice needs a list of texts"),
        (lambda: GRAMMARS.choice("ab"), "a choice needs a list of texts"),
        (lambda: GRAMMARS.choice(["a", ""]), "a choice needs a list of texts"),
        (lambda: called("moonlight", 0), "chat form moonlight has no tool calls"),
        (lambda: called("k2", 0, choice="other"), "tool 'other' is not declared; the tools are find, now"),
        (lambda: called("k2", 0, most=17), "most is 17; a turn has 1..16 calls"),
        (lambda: GRAMMARS.tool_calls([], form_named("k2")), "no function is declared"),
        (lambda: GRAMMARS.tool_calls([TOOLS[1], TOOLS[1]], form_named("k2")), "tool 'now' is declared twice"),
        (
            lambda: GRAMMARS.tool_calls(
                [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}], form_named("k2")
            ),
            "parameters have type 'array'",
        ),
        (
            lambda: GRAMMARS.tool_calls(
                [{"type": "function", "function": {"name": "f", "parameters": nested(9000)}}], form_named("k2")
            ),
            "tool 0 is nested deeper than 64 levels",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ValueError, match=r'pip install "moonlet\[serve\]"'):
        Grammars(BYTES)
