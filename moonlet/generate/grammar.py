"""Texts that must be in a language: JSON of a schema, a regular expression, one of some choices, calls of tools.

    Grammars(tokenizer).json_schema(schema)  ->  Grammar  --matcher()-->  Matcher: which tokens may follow

The package llguidance compiles a grammar and tells, token by token, what may follow; here is what is asked of it, in
its own notation (Lark's, with `%json` for schemas and `<[7]>` for the special token 7). A text's marks are special
tokens and its words never are: "<|im_end|>" inside a string stays ten characters.

A tool call is written in the family's form (see `moonlet.text.chat.forms`):

    [thought] [text] <|tool_calls_section_begin|> { <|tool_call_begin|> functions.NAME:IDX <|tool_call_argument_begin|>
    JSON <|tool_call_end|> } <|tool_calls_section_end|>

Between two tokens of JSON stands nothing, one space, or a new line and its indentation: a model that is unsure would
fill a text with spaces for ever. What a schema says that cannot be kept is an error, never ignored. Hostile grammars
end in a ValueError soon: size and nesting are checked first, and all that llguidance does has a budget.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moonlet.text import Tokenizer
from moonlet.text.chat import forms
from moonlet.text.chat.forms import ChatForm
from moonlet.text.chat.messages import call_id, read_tools
from moonlet.text.chat.render import mark_ids

MAX_CHARACTERS = 64 * 1024  # of a grammar as it is given
MAX_DEPTH = 64  # objects and lists within one another
MAX_MEMBERS = 1000  # of one object: compiling takes time with the square
MAX_CALLS = 16  # in one turn

_SPACE = r"( |\n {0,32})?"
# Milliseconds each, and a few megabytes at most; real schemas take a hundredth.
_LIMITS = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
_TEXT = "TEXT: /(?s:.+)/"
_PLACE = re.compile(r"^(error|at \d+\(\d+\)): ")


class CompiledGrammar:
    """A language, ready to be matched; see `Grammars`.

    Attributes:
        source: the grammar as llguidance reads it.
    """

    def __init__(self, library: Any, table: Any, source: str) -> None:
        self.source = source
        self._first = library.LLMatcher(table, source, log_level=0, limits=library.LLParserLimits(**_LIMITS))
        _check(self._first, "cannot be used")
        # A language without any text (one that needs itself) shows only when something is asked of it.
        self.matcher().allowed()

    def matcher(self) -> TokenMatcher:
        """One that stands at the beginning."""
        return TokenMatcher(self._first.deep_copy())


class TokenMatcher:
    """Where one text stands in a grammar."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def allowed(self) -> bytes:
        """A bit a token, the lowest of each byte first; that of [EOS] says that the text may end.

        Raises:
            ValueError: the grammar is too costly to follow further.
        """
        bits: bytes = self._engine.compute_bitmask()
        _check(self._engine, "cannot be followed further")
        return bits

    def take(self, token: int) -> None:
        """The text goes on with `token`, which was allowed.

        Raises:
            ValueError: it was not, or the grammar is too costly to follow further.
        """
        if not self._engine.consume_token(token):
            _check(self._engine, f"cannot be followed behind token {token}")

    @property
    def done(self) -> bool:
        """Whether the text is whole and nothing but an end may follow."""
        return bool(self._engine.is_stopped()) and not self._engine.is_error()


class Grammars:
    """Makes grammars for one tokenizer. For a large vocabulary this takes about a second, so keep it.

    A method's `form` is the chat form of a prompt that ends with the opening of an answer: with it the model may think
    first, as far as the form has it, and `thinking` is what `render` was told.

    Raises:
        ValueError: the tokenizer's text is not its tokens joined, or the package llguidance is missing.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.kind == "word":
            raise ValueError(
                "a grammar needs a tokenizer whose text is its tokens joined, and a word tokenizer writes spaces and "
                "capitals anew; use a model with a byte, bpe, tiktoken or sentencepiece tokenizer"
            )
        self._library = _library()
        self._tokenizer = tokenizer
        self._table = self._library.LLTokenizer(_Vocabulary(tokenizer), eos_token=tokenizer.eos_id)

    def json_object(self, *, form: ChatForm | None = None, thinking: bool = True) -> CompiledGrammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"}, form=form, thinking=thinking)

    def json_schema(
        self, schema: Mapping[str, Any] | bool, *, form: ChatForm | None = None, thinking: bool = True
    ) -> CompiledGrammar:
        """JSON that is valid under a schema.

        Raises:
            ValueError: no schema, one that nothing fits, one that asks for what cannot be kept, or too large a one.
        """
        return self._compile(*self._thought(form, thinking), f"%json {_schema(schema, 'the JSON schema')}")

    def regex(self, pattern: str, *, form: ChatForm | None = None, thinking: bool = True) -> CompiledGrammar:
        """A text that a regular expression matches from its beginning to its end.

        Raises:
            ValueError: no regular expression of the kind that has no look-around and no back references, or one that is
                too large.
        """
        _check_length(pattern, "the regular expression")
        if not pattern:
            raise ValueError("the regular expression is empty; give one that some text matches")
        written = "".join({"/": r"\/", "\n": r"\n", "\r": r"\r"}.get(c, c) for c in _unescaped(pattern))
        return self._compile(*self._thought(form, thinking), f"/{written}/")

    def choice(self, options: Sequence[str], *, form: ChatForm | None = None, thinking: bool = True) -> CompiledGrammar:
        """One of some texts.

        Raises:
            ValueError: no options, an empty one, or too many.
        """
        if isinstance(options, str) or not options or not all(isinstance(o, str) and o for o in options):
            raise ValueError("a choice needs a list of texts that are not empty")
        _check_length("".join(options), "the choice")
        return self._compile(*self._thought(form, thinking), " | ".join(map(_quoted, dict.fromkeys(options))))

    def tool_calls(
        self,
        tools: Sequence[Mapping[str, Any]],
        form: ChatForm,
        *,
        choice: str = "required",
        most: int = MAX_CALLS,
        calls_before: int = 0,
        thinking: bool = True,
        content: Mapping[str, Any] | bool | None = None,
    ) -> CompiledGrammar:
        """An answer that calls tools with arguments valid under their schemas.

        Args:
            tools: declared tools, OpenAI-shaped.
            choice: "required": one call at least and no text; "auto": text, calls, or both; else the name of the tool
                that is called.
            content: with "auto", the schema of the text of an answer that calls nothing; None: any text.
            most: calls in this turn at most, in 1..MAX_CALLS.
            calls_before: calls made in the conversation so far, from which this turn's are numbered.

        Raises:
            ValueError: a malformed tool or schema, a name that no tool has, or a form or tokenizer without calls.
        """
        if form.tools is None:
            raise ValueError(f"chat form {form.name} has no tool calls; leave tools out")
        if not 1 <= most <= MAX_CALLS:
            raise ValueError(f"most is {most}; a turn has 1..{MAX_CALLS} calls")
        schemas = _parameters(tools)
        if choice not in ("auto", "required"):
            if choice not in schemas:
                raise ValueError(f"tool {choice!r} is not declared; the tools are {', '.join(schemas) or 'none'}")
            schemas = {choice: schemas[choice]}
        if not schemas:
            raise ValueError("no function is declared, so none can be called")
        begin, end = self._mark(forms.CALLS_BEGIN), self._mark(forms.CALLS_END)
        first = 0 if form.own_ids else calls_before
        rules = [*self._calls(list(schemas), first, most)]
        rules += [f"args_{t}: %json {schema}" for t, schema in enumerate(schemas.values())]
        thought, more = self._thought(form, thinking)
        body = f"{begin} calls_0 {end}"
        if choice == "auto" and content is None:
            body, more = f"TEXT? ({body})?", [_TEXT]
        elif choice == "auto":
            body, more = f"content | {body}", [*more, f"content: %json {_schema(content, 'the JSON schema')}"]
        return self._compile(thought, [*more, *rules], body)

    def _calls(self, names: Sequence[str], first: int, most: int) -> Iterator[str]:
        """Rules of `most` calls, one behind the other, each with its own number."""
        begin, arguments, end = map(self._mark, (forms.CALL_BEGIN, forms.CALL_ARGUMENTS, forms.CALL_END))
        for place in range(most):
            options = " | ".join(
                f"{_quoted(call_id(name, first + place))} {arguments} args_{t}" for t, name in enumerate(names)
            )
            another = f" calls_{place + 1}?" if place + 1 < most else ""
            yield f"calls_{place}: {begin} ({options}) {end}{another}"

    def _thought(self, form: ChatForm | None, thinking: bool) -> tuple[str, list[str]]:
        """What may stand before the answer proper, and the rules it needs."""
        if form is None or not form.thinks or (form.prompts_thinking and not thinking):
            return "", []
        end = self._mark(forms.THINK_END)
        if form.prompts_thinking:
            return f"TEXT? {end}", [_TEXT]
        return f"({self._mark(forms.THINK)} TEXT? {end})?", [_TEXT]

    def _mark(self, name: str) -> str:
        marks = mark_ids(self._tokenizer)
        if name not in marks:
            raise ValueError(
                f"the {self._tokenizer.kind} tokenizer has no special token {name}; choose the chat form its model was "
                "trained with"
            )
        return f"<[{marks[name]}]>"

    def _compile(self, before: str, rules: Sequence[str], body: str) -> CompiledGrammar:
        source = "\n".join([f"start: {before} ({body})" if before else f"start: {body}", *rules])
        return CompiledGrammar(self._library, self._table, source)


class _Vocabulary:
    """A tokenizer as llguidance takes one."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.tokens = [tokenizer.piece(index) for index in range(tokenizer.vocab_size)]
        # What no text is made of: marks, the unknown, and what has no bytes at all.
        apart = {*tokenizer.specials.values(), *(index for index, piece in enumerate(self.tokens) if not piece)}
        if tokenizer.unk_id is not None:
            apart.add(tokenizer.unk_id)
        self.special_token_ids = sorted(apart)
        self._longest = max(map(len, self.tokens))
        self._ids = {self.tokens[i]: i for i in range(len(self.tokens)) if i not in apart}

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text that the grammar leaves no choice about."""
        ids = self._tokenizer.encode(text)
        data = text.encode()
        # A tokenizer may write what is not there, as a space at the beginning.
        return ids if b"".join(self.tokens[i] for i in ids) == data else self._greedily(data)

    def _greedily(self, data: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(data):
            ends = range(min(len(data), at + self._longest), at, -1)
            found = next((end for end in ends if data[at:end] in self._ids), None)
            if found is None:
                break
            ids.append(self._ids[data[at:found]])
            at = found
        return ids


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ValueError('grammars need the package llguidance: pip install "moonlet[serve]"') from None
    return llguidance


def _check(engine: Any, what: str) -> None:
    if engine.is_error():
        lines = [line.strip() for line in engine.get_error().splitlines()]
        told = [line for line in lines if line and not line.startswith("<")] or ["it is too complex"]
        # Of a regular expression the last line says what is wrong, and those before draw a picture.
        reason = next((line for line in told if line.startswith("error: ")), told[0])
        if reason.startswith("NoExtension"):
            reason = "no text fits it"
        raise ValueError(f"the grammar {what}: {_PLACE.sub('', reason)[:300]}")


def _check_length(text: object, what: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{what} is {text!r}; it must be a text")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{what} has {len(text)} characters; at most {MAX_CHARACTERS} are read")


def _schema(schema: object, what: str) -> str:
    """A schema as it stands in a grammar."""
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        raise ValueError(f"{what} is {str(schema)[:40]!r}; it must be an object")
    _check_shape(schema, what)
    if "x-guidance" in schema:
        raise ValueError(f'{what} has "x-guidance", which changes the rules of grammars; leave it out')
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} is no JSON: {error}") from None
    _check_length(text, what)
    options = {"whitespace_pattern": _SPACE, "lenient": False, "coerce_one_of": False}
    return json.dumps({**json.loads(text), "x-guidance": options})


def _check_shape(schema: object, what: str) -> None:
    """Nesting and size, before anything walks it that may run out of stack."""
    level, depth = [schema], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"{what} is nested deeper than {MAX_DEPTH} levels; flatten it, or name parts in $defs")
        deeper: list[object] = []
        for value in level:
            if isinstance(value, Mapping):
                if len(value) > MAX_MEMBERS:
                    raise ValueError(f"{what} has an object of {len(value)} members; at most {MAX_MEMBERS} are read")
                deeper += value.values()
            elif isinstance(value, list | tuple):
                deeper += value
        if len(deeper) > MAX_CHARACTERS:
            raise ValueError(f"{what} has more than {MAX_CHARACTERS} values; make it smaller")
        level = [value for value in deeper if isinstance(value, Mapping | list | tuple)]


def _parameters(tools: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Name -> schema of the arguments, of each declared function."""
    for number, tool in enumerate(tools if isinstance(tools, list | tuple) else []):
        _check_shape(tool, f"tool {number}")
    schemas: dict[str, str] = {}
    for tool in read_tools(tools):
        if tool.get("type") != "function":
            continue
        function = tool["function"]
        name, schema = function["name"], function.get("parameters")
        if name in schemas:
            raise ValueError(f"tool {name!r} is declared twice")
        schema = {"additionalProperties": False} if schema is None else dict(schema)
        if schema.setdefault("type", "object") != "object":
            raise ValueError(f'tool {name!r}: parameters have type {schema["type"]!r}; arguments are an "object"')
        schemas[name] = _schema(schema, f"tool {name!r}: the schema of its parameters")
    _check_length("".join(schemas.values()), "the tools")
    return schemas


def _unescaped(pattern: str) -> Iterator[str]:
    """The pattern's characters, an escape and what it escapes at once; `/` needs none here, and the grammar's own."""
    characters = iter(pattern)
    for c in characters:
        if c == "\\":
            escaped = next(characters, "")
            yield escaped if escaped in ("/", "\n", "\r") else c + escaped
        else:
            yield c


def _quoted(text: str) -> str:
    """A text as a literal of the grammar."""
    return json.dumps(text, ensure_ascii=False)
