"""From events of the engine to what a client reads: one answer, as it grows and as a whole.

An answer takes events and gives the pieces of a stream; `whole` is the same content in one. Texts of chats are taken
apart by `moonlet.text.chat.Parser`, from ids, so that what a model merely spells is never taken for a mark.
"""

from __future__ import annotations

from typing import Any

from moonlet.generate.request import Event, Likely
from moonlet.generate.text import StopFinder
from moonlet.serve.errors import ApiError
from moonlet.serve.plan import Plan, Served
from moonlet.text import Tokenizer
from moonlet.text.chat import Delta, Parser

Piece = dict[str, Any]
_TOLD = ("tokens", "token_logprobs", "top_logprobs", "text_offset", "token_ids")


class CompletionAnswer:
    """One continuation of a prompt."""

    def __init__(self, plan: Plan, index: int, served: Served) -> None:
        self.finish: str | None = None
        self.drawn = self.reused = self.reasoned = 0
        self._index, self._tokenizer = index, served.tokenizer
        self._logprobs = plan.requests[index].params.logprobs is not None
        self._grammar = plan.requests[index].grammar is not None
        self._text: list[str] = []
        self._told: Piece = {name: [] for name in _TOLD}
        # What the text is without stop texts holding it back: says where in it a token stands.
        self._spelling = served.tokenizer.detokenizer(plan.requests[index].prompt, skip_special=True)
        self._offset = 0
        self._echo = plan.echo[index] if plan.echo else ""

    def read(self, event: Event) -> list[Piece]:
        """More has come; the choices of a stream's next chunks.

        Raises:
            ApiError: the answer cannot go on.
        """
        _check(self, event, self._grammar)
        text, self._echo = self._echo + event.text, ""
        self._text.append(text)
        if event.finish is not None:
            self.finish = event.finish
        told = self._tell(event.drawn, event.likely) if self._logprobs and event.drawn is not None else None
        if not (text or told or self.finish):
            return []
        return [self._choice(text, told or {name: [] for name in _TOLD})]

    def whole(self) -> Piece:
        """The answer in one."""
        return self._choice("".join(self._text), self._told)

    def _choice(self, text: str, told: Piece) -> Piece:
        return {
            "index": self._index,
            "text": text,
            "logprobs": told if self._logprobs else None,
            "finish_reason": self.finish,
        }

    def _tell(self, drawn: Likely, likely: tuple[Likely, ...]) -> Piece:
        """One more token, as in a completion's logprobs; it stands among the likeliest also where it is not."""
        near = {spelt(one.token, self._tokenizer): one.logprob for one in (*likely, drawn)}
        values = spelt(drawn.token, self._tokenizer), drawn.logprob, near, self._offset, drawn.token
        self._offset += len(self._spelling.push(drawn.token))
        for name, value in zip(_TOLD, values, strict=True):
            self._told[name].append(value)
        return {name: [value] for name, value in zip(_TOLD, values, strict=True)}


class ChatAnswer:
    """One turn of the assistant."""

    def __init__(self, plan: Plan, index: int, served: Served) -> None:
        assert served.form is not None
        self.finish: str | None = None
        self.drawn = self.reused = self.reasoned = 0
        self._index, self._tokenizer = index, served.tokenizer
        self._parser = Parser(
            served.form,
            thinking=plan.thinking,
            names=plan.names,
            calls_before=0 if served.form.own_ids else plan.before,
            tokenizer=served.tokenizer,
        )
        self._callable = bool(plan.names)
        self._stop = StopFinder(plan.stop)
        self._logprobs = plan.requests[index].params.logprobs is not None
        self._grammar = plan.requests[index].grammar is not None
        self._unread = 0  # tokens whose text has not come yet
        self._waiting: list[Piece] = []  # what is told of them
        self._told: list[Piece] = []
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[Piece] = []
        self._places: dict[int, int] = {}  # the parser's number of a call -> ours
        self._begun = False

    def read(self, event: Event) -> list[Piece]:
        """More has come; the choices of a stream's next chunks.

        Raises:
            ApiError: the answer cannot go on.
        """
        _check(self, event, self._grammar)
        if self.finish is not None:
            return []
        deltas = [] if event.token is None else self._parser.feed_ids([event.token])
        self._unread += event.token is not None
        if self._logprobs and event.drawn is not None:
            self._waiting.append(told(event.drawn, event.likely, self._tokenizer))
        if event.finish is not None:
            deltas += self._parser.finish()
        piece, kinds = self._piece(deltas)
        if event.finish is not None and not self._stop.stopped:
            rest = self._stop.finish()
            if rest:
                self._content.append(rest)
                piece["content"] = piece.get("content", "") + rest
        shown: list[Piece] = []
        if kinds:
            # What belongs to reasoning and to calls is no content, and the interface tells of content alone.
            shown, self._waiting = (self._waiting if "content" in kinds else []), []
            self.reasoned += self._unread if "reasoning" in kinds else 0
            self._unread = 0
        self._told += shown
        if self._stop.stopped:
            self.finish = "stop"
        elif event.finish is not None:
            self.finish = "tool_calls" if event.finish == "stop" and self._calls else event.finish
        return self._choices(piece, shown)

    def whole(self) -> Piece:
        """The answer in one."""
        message: Piece = {
            "role": "assistant",
            "content": "".join(self._content) or (None if self._calls else ""),
            "refusal": None,
        }
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            message["tool_calls"] = self._calls
        return {
            "index": self._index,
            "message": message,
            "logprobs": {"content": self._told, "refusal": None} if self._logprobs else None,
            "finish_reason": self.finish,
        }

    def _choices(self, piece: Piece, shown: list[Piece]) -> list[Piece]:
        deltas = []
        if not self._begun:
            self._begun = True
            deltas.append({"role": "assistant", "content": ""})
        if piece or shown:
            deltas.append(piece)
        if self.finish is not None:
            deltas.append({})
        choices: list[Piece] = [
            {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas
        ]
        if shown:
            choices[-1 if self.finish is None else -2]["logprobs"] = {"content": shown, "refusal": None}
        if self.finish is not None:
            choices[-1]["finish_reason"] = self.finish
        return choices

    def _piece(self, deltas: list[Delta]) -> tuple[Piece, set[str]]:
        """What some deltas add to the message, and of which kinds they were."""
        piece: Piece = {}
        for delta in deltas:
            if delta.kind == "reasoning":
                self._reasoning.append(delta.text)
                piece["reasoning_content"] = piece.get("reasoning_content", "") + delta.text
            elif delta.kind == "content" or not self._callable:
                # Without tools what looks like a call is a text as any other.
                text = self._stop.push(delta.text)
                self._content.append(text)
                if text:
                    piece["content"] = piece.get("content", "") + text
            elif not self._stop.stopped:
                piece.setdefault("tool_calls", []).extend(self._call(delta))
        if not piece.get("tool_calls", True):
            del piece["tool_calls"]
        kinds: set[str] = {delta.kind for delta in deltas}
        return piece, kinds if self._callable else {kind if kind == "reasoning" else "content" for kind in kinds}

    def _call(self, delta: Delta) -> list[Piece]:
        if delta.kind == "call":
            if not delta.name:
                return []  # cut off within its id: there is no function to name
            self._places[delta.index] = place = len(self._calls)
            function = {"name": delta.name, "arguments": ""}
            self._calls.append({"id": delta.text, "type": "function", "function": function})
            return [{"index": place, "id": delta.text, "type": "function", "function": dict(function)}]
        if delta.kind == "arguments" and delta.index in self._places:
            place = self._places[delta.index]
            self._calls[place]["function"]["arguments"] += delta.text
            return [{"index": place, "function": {"arguments": delta.text}}]
        return []


def spelt(token: int, tokenizer: Tokenizer) -> str:
    """A token as text; bytes that are none by themselves are spelt out, as the OpenAI interface does."""
    piece = tokenizer.piece(token)
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def told(drawn: Likely, likely: tuple[Likely, ...], tokenizer: Tokenizer) -> Piece:
    """A token and its alternatives, as in a chat's logprobs."""

    def one(token: Likely) -> Piece:
        return {
            "token": spelt(token.token, tokenizer),
            "logprob": token.logprob,
            "bytes": list(tokenizer.piece(token.token)),
        }

    return {**one(drawn), "top_logprobs": [one(other) for other in likely]}


def _check(answer: CompletionAnswer | ChatAnswer, event: Event, grammar: bool) -> None:
    """Count, and raise what the engine says went wrong."""
    if event.finish == "error":
        # With a grammar the likeliest cause is the grammar: one that this vocabulary cannot spell.
        raise ApiError(400 if grammar else 500, event.error or "the text could not be continued", code="generation")
    if event.finish == "cancelled":
        raise ApiError(503, "the answer was cancelled", code="cancelled")
    answer.drawn += event.token is not None
    answer.reused += event.reused
