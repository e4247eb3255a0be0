"""The story world: a seeded stream of small stories whose information content is known exactly.

story(i) depends on (seed, split, i) alone: a hash of the three seeds a generator, whose draws tell one story, and

    bits(story) = sum over its choices of -log2 p(choice),    floor = sum of bits / sum of UTF-8 bytes  [bits per byte]

Only `random.Random.random` is drawn from, which Python promises to keep the same from version to version. The text is
synthetic.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b

from moonlet.data.story import feelings, people, places, things
from moonlet.data.story.grammar import Grammar, Telling
from moonlet.data.story.notation import read_blocks
from moonlet.data.story.plots import courage, heart, losing, opening, shared, together
from moonlet.data.story.questions import Question, questions_about

SPLITS = ("train", "valid", "test")
BLOCKS = (people.TABLES, things.TABLES, places.TABLES, feelings.TABLES)
PLOTS = (shared.RULES, losing.RULES, heart.RULES, courage.RULES, together.RULES, opening.RULES)

Derivation = Telling


@dataclass(frozen=True)
class Story:
    """One story.

    text: paragraphs separated by single newlines. bits: information content of the text. questions: with their answers.
    characters: names of the hero and the friend. choices: the option taken at each choice. facts: what the world knows.
    """

    text: str
    bits: float
    questions: tuple[Question, ...]
    characters: tuple[str, ...]
    choices: tuple[int, ...] = field(repr=False)
    facts: Mapping[str, str] = field(repr=False, hash=False)

    @property
    def plot(self) -> str:
        """Name of the plot."""
        return self.facts["plot"]


class StoryWorld:
    """All stories of one seed.

    Args:
        seed: any integer; worlds of different seeds are independent.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._grammar = story_grammar()
        self._random = random.Random()

    def story(self, index: int, split: str = "train") -> Story:
        """Story number `index` (0 or more) of a split: "train", "valid" or "test"; same arguments, same story."""
        if split not in SPLITS:
            raise ValueError(f"story world: split {split!r} is none of {', '.join(SPLITS)}")
        if index < 0:
            raise ValueError(f"story world: index {index} is negative; stories count from 0")
        digest = blake2b(f"{self.seed}/{split}/{index}".encode(), digest_size=8).digest()
        self._random.seed(int.from_bytes(digest, "big"))
        telling = self._grammar.tell(self._random.random)
        facts = telling.facts
        characters = (facts["h"], facts["f"])
        return Story(telling.text, telling.bits, questions_about(facts), characters, telling.choices, facts)

    def stories(self, count: int, *, start: int = 0, split: str = "train") -> Iterator[Story]:
        """`count` stories of a split, from number `start` on."""
        return (self.story(index, split) for index in range(start, start + count))

    def derivations(self, text: str, limit: int = 2) -> list[Derivation]:
        """All ways to tell exactly this text, at most `limit`: one for a story, none for any other text."""
        found: list[Derivation] = []
        for telling in self._grammar.tellings(text):
            found.append(telling)
            if len(found) >= limit:
                break
        return found


@cache
def story_grammar() -> Grammar:
    """The grammar of the story world, read once."""
    return Grammar(read_blocks(*BLOCKS, *PLOTS), "Story")
