"""A story with its questions and answers as one text: what a model reads to learn to answer.

    <the story>
    Q: Who got the ball down?
    A: Lily
    Q: Where was Alice?
    A: in the park

All questions of a story are asked, in an order drawn for each story, so that none can be answered from its place. The
n questions follow from the story, and their n! orders are equally likely; a text with questions therefore carries

    bits = bits of the story + log2 n!

and the entropy floor stays known.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from moonlet.data.story.questions import Question
from moonlet.data.story.world import Story

QUESTION, ANSWER = "Q:", "A:"


@dataclass(frozen=True)
class AskedStory:
    """A story with its questions. text: as above; bits: information content of the text."""

    text: str
    bits: float


def with_questions(story: Story, seed: int = 0) -> AskedStory:
    """The story followed by all its questions and answers; the same arguments give the same text."""
    # The order depends on the text, not on a running number, so that any subset of stories is told alike.
    digest = blake2b(f"{seed}/{story.text}".encode(), digest_size=8).digest()
    draw = random.Random(int.from_bytes(digest, "big")).random
    # Sorting by drawn numbers uses random() alone, which Python promises to keep; shuffle() it does not.
    drawn = sorted((draw(), place) for place in range(len(story.questions)))
    questions = [story.questions[place] for _, place in drawn]
    return AskedStory(render(story.text, questions), story.bits + math.log2(math.factorial(len(questions))))


def render(story: str, questions: Iterable[Question]) -> str:
    """The story, then each question and its answer on a line of its own."""
    return story + "".join(f"\n{QUESTION} {question.text}\n{ANSWER} {question.answer}" for question in questions)


def prompt(story: str, question: str) -> str:
    """What a model trained on `with_questions` continues with a space and the answer."""
    return f"{story}\n{QUESTION} {question}\n{ANSWER}"
