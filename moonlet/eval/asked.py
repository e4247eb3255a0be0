"""The questions an evaluation asks about the story world, each with its candidates and a blind guess.

They come from held-out stories (the world's "test" split), the same ones for the same seed, whatever the model. The
candidates of a question are its answer and three others: one that answers another question of its kind about the same
story, if there is one (the friend's name where the hero's is right), and then answers to the same question about other
stories, none of which stands in this one, where it could be right as well. The blind guess is the commonest answer to
that question over training stories: what one can score who knows the world but has not read the story.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from moonlet.data.story import Question, Story, StoryWorld

CANDIDATES = 4
KINDS = ("who", "where", "what", "why", "how")
# Training stories from which other answers and blind guesses are taken.
_KNOWN_STORIES = 2000
# What a question may name: these facts are replaced by their role to see which question it is.
_NAMED = ("h", "f", "t", "b", "m", "x", "x.deed", "feel", "h.he", "f.he")


@dataclass(frozen=True)
class Asked:
    """A question about a story. candidates: answers in drawn order, of which candidates[right] is the true one."""

    story: str
    question: Question
    candidates: tuple[str, ...]
    right: int
    guess: str


def held_out(stories: int, world_seed: int = 0, seed: int = 0) -> list[Asked]:
    """All questions about the first `stories` test stories of a world.

    Args:
        seed: of the draw of candidates.

    Raises:
        ValueError: no stories.
    """
    if stories < 1:
        raise ValueError(f"{stories} stories to ask about; there must be at least 1")
    known = _known_answers(world_seed)
    asked = []
    for index, story in enumerate(StoryWorld(world_seed).stories(stories, split="test")):
        draw = random.Random(f"{seed}/{world_seed}/{index}")
        for question in story.questions:
            common = known[form(question.text, story.facts)]
            wrong = _wrong_answers(question, story, [common, known[question.kind]], draw)
            right = int(draw.random() * (len(wrong) + 1))
            candidates = (*wrong[:right], question.answer, *wrong[right:])
            asked.append(Asked(story.text, question, candidates, right, _guess(common)))
    return asked


def form(text: str, facts: Mapping[str, str]) -> str:
    """A question with the story's own words replaced by their roles: "Who helped {girl} find the {t}?".

    A name's role is a girl or a boy, which its reader knows without the story.
    """
    roles = {facts[name]: facts.get(f"{name}.sex", name) for name in reversed(_NAMED) if facts.get(name)}
    words = "|".join(re.escape(word) for word in sorted(roles, key=len, reverse=True))
    said = re.sub(rf"\b(?:{words})\b", lambda match: f"{{{roles[match[0]]}}}", text)
    return said.replace(" an {", " a {")


@cache
def _known_answers(world_seed: int) -> dict[str, Counter[str]]:
    """Form of a question, or kind -> its answers over training stories, with how often each occurs."""
    known: dict[str, Counter[str]] = defaultdict(Counter)
    for story in StoryWorld(world_seed).stories(_KNOWN_STORIES):
        for question in story.questions:
            known[form(question.text, story.facts)][question.answer] += 1
            known[question.kind][question.answer] += 1
    return known


def _wrong_answers(question: Question, story: Story, known: Sequence[Counter[str]], draw: random.Random) -> list[str]:
    """Up to three, the likeliest to mislead first; `known` holds answers of the question's form, then of its kind."""

    def fits(answer: str) -> bool:
        return answer != question.answer and _opening(answer) == _opening(question.answer)

    alike = [other.answer for other in story.questions if other.kind == question.kind and fits(other.answer)]
    wrong = dict.fromkeys(_drawn(alike, draw)[:1])
    for answers in known:
        for answer in _drawn([answer for answer in sorted(answers) if fits(answer)], draw):
            if len(wrong) == CANDIDATES - 1:
                return list(wrong)
            if not re.search(rf"\b{re.escape(answer)}\b", story.text):
                wrong[answer] = None
    return list(wrong)


def _opening(answer: str) -> str:
    """The first two words of a clause and the first of a phrase, by which a wrong answer would give itself away."""
    words = answer.split()
    opening = " ".join(words[: 2 if words[0] == "because" else 1]) if len(words) > 1 else ""
    return "at" if opening in ("in", "by") else opening


def _drawn(items: Sequence[str], draw: random.Random) -> list[str]:
    """All items in drawn order."""
    return [item for _, item in sorted((draw.random(), item) for item in items)]


def _guess(common: Counter[str]) -> str:
    """The commonest answer, the first in the alphabet where several are."""
    return min(common, key=lambda answer: (-common[answer], answer)) if common else ""
