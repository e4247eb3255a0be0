"""What a model understands of a story: the answers to the story world's questions, by kind.

Two measures, which are not the same and are always named:

    chosen   the candidate with the least -log p(candidate | story, question) a token is the true answer. It asks
             nothing of the model but to have read stories; chance is 1 in the number of candidates, mostly 4.
    exact    the model, continuing greedily, writes the true answer and nothing else on the line. It is for models that
             were trained on stories with questions (moonlet/data/story/asking.py); "chance" is the blind guess.

A question is put either as in that training, "Q: ...", or plainly, as a line of its own; per model, the form is taken
in which its questions are the likelier text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from moonlet.data.story.asking import ANSWER, QUESTION, prompt
from moonlet.eval.asked import KINDS, Asked, held_out
from moonlet.eval.score import Passage, passage, score
from moonlet.generate import SamplingParams, complete
from moonlet.model.model import CausalLM
from moonlet.text.tokenizer import Tokenizer

# Questions from which the form is decided.
_TRIED = 32
_BATCH = 32


@dataclass(frozen=True)
class Tally:
    """Right answers among the questions of one kind, and how many chance would get right."""

    right: int
    total: int
    by_chance: float

    @property
    def share(self) -> float:
        """In 0..1."""
        return self.right / self.total

    @property
    def chance(self) -> float:
        """In 0..1."""
        return self.by_chance / self.total


@dataclass(frozen=True)
class Answer:
    """One question with what the model made of it."""

    question: str
    kind: str
    truth: str
    chosen: str
    written: str


@dataclass(frozen=True)
class QuestionScores:
    """chosen, exact: kind -> tally, "all" last. asked_plainly: the form of the question. answers: one by one."""

    stories: int
    asked_plainly: bool
    chosen: dict[str, Tally]
    exact: dict[str, Tally]
    answers: tuple[Answer, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the single answers."""
        measures = {"chosen": self.chosen, "exact": self.exact}
        return {
            "stories": self.stories,
            "form": "plain" if self.asked_plainly else "Q: A:",
            **{
                name: {
                    kind: {"share": t.share, "right": t.right, "questions": t.total, "chance": t.chance}
                    for kind, t in tallies.items()
                }
                for name, tallies in measures.items()
            },
        }


def ask(
    model: CausalLM, tokenizer: Tokenizer, stories: int, context: int, world_seed: int = 0, seed: int = 0
) -> QuestionScores:
    """Ask a model all questions about held-out stories.

    Args:
        stories: of the world's "test" split, from the first on.
        context: tokens read at once; of a longer story the oldest give way.
        world_seed: the world the model was trained on.
        seed: of the draw of candidates.

    Raises:
        ValueError: no stories, or a context too short for a question.
    """
    asked = held_out(stories, world_seed, seed)
    plainly = _plain_is_likelier(model, tokenizer, asked[:_TRIED], context)
    chosen = _choose(model, tokenizer, asked, plainly, context)
    written = _write(model, tokenizer, [context_of(a, plainly) for a in asked], _longest(tokenizer, asked), context)
    answers = tuple(
        Answer(a.question.text, a.question.kind, a.question.answer, a.candidates[pick], text)
        for a, pick, text in zip(asked, chosen, written, strict=True)
    )
    right_choice = [pick == a.right for a, pick in zip(asked, chosen, strict=True)]
    right_text = [same(text, a.question.answer) for a, text in zip(asked, written, strict=True)]
    return QuestionScores(
        stories,
        plainly,
        _tallies(asked, right_choice, [1 / len(a.candidates) for a in asked]),
        _tallies(asked, right_text, [float(same(a.guess, a.question.answer)) for a in asked]),
        answers,
    )


def context_of(asked: Asked, plainly: bool) -> str:
    """What the answer follows."""
    return f"{asked.story}\n{asked.question.text}\n" if plainly else prompt(asked.story, asked.question.text)


def same(written: str, truth: str) -> bool:
    """Whether a written answer is the true one; capitals, spaces and a final full stop do not count."""
    return _plain(written) == _plain(truth)


def first_line(text: str) -> str:
    """The answer in what a model wrote: up to the end of the line or the next question."""
    # A word-level tokenizer knows no lines, so the next question's mark ends the answer as well.
    return re.split(rf"\n|\b(?i:{QUESTION[0]}) ?:", text.strip(), maxsplit=1)[0].strip()


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def _plain_is_likelier(model: CausalLM, tokenizer: Tokenizer, asked: Sequence[Asked], context: int) -> bool:
    nats = []
    for question in ("\n{}\n", f"\n{QUESTION} {{}}\n{ANSWER}"):
        lines = [passage(tokenizer, a.story, question.format(a.question.text), context) for a in asked]
        nats.append(sum(s.nats for s in score(model, lines)))
    return nats[0] < nats[1]


def _choose(model: CausalLM, tokenizer: Tokenizer, asked: Sequence[Asked], plainly: bool, context: int) -> list[int]:
    """The likeliest candidate a token of each question."""
    passages: list[Passage] = []
    for a in asked:
        before, space = context_of(a, plainly), "" if plainly else " "
        passages += [passage(tokenizer, before, space + candidate, context) for candidate in a.candidates]
    scores = iter(score(model, passages))
    chosen = []
    for a in asked:
        per_token = [s.nats / s.count for s in islice(scores, len(a.candidates))]
        chosen.append(per_token.index(min(per_token)))
    return chosen


def _longest(tokenizer: Tokenizer, asked: Sequence[Asked]) -> int:
    """Tokens that hold any answer and the end of its line."""
    return 4 + max(len(tokenizer.encode(f" {a.question.answer}")) for a in asked)


def _write(model: CausalLM, tokenizer: Tokenizer, contexts: Sequence[str], tokens: int, context: int) -> list[str]:
    """What the model writes after each context, up to the end of the line."""
    limit = min(context, model.config.context_limit - tokens)
    params = SamplingParams(max_new_tokens=tokens, temperature=0, stop=("\n",))
    whole = [_shortened(tokenizer, text, limit) for text in contexts]
    return [first_line(c.text) for c in complete(model, tokenizer, whole, params, _BATCH, exact=False)]


def _shortened(tokenizer: Tokenizer, text: str, limit: int) -> str:
    """The last part of `text` that `limit` tokens with [BOS] hold."""
    ids = tokenizer.encode(text)
    return text if len(ids) < limit else tokenizer.decode(ids[len(ids) - limit + 1 :])


def _tallies(asked: Sequence[Asked], right: Sequence[bool], chance: Sequence[float]) -> dict[str, Tally]:
    tallies = {}
    for kind in (*KINDS, "all"):
        rows = [i for i, a in enumerate(asked) if kind in ("all", a.question.kind)]
        if rows:
            tallies[kind] = Tally(sum(right[i] for i in rows), len(rows), sum(chance[i] for i in rows))
    return tallies
