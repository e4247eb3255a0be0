"""Questions about a story, with answers, from what the world knows about it.

The answer to a question follows from the text: it is said there, or (for why) it is what happened. A question is asked
only where every fact it needs is told; none of them is a choice, so questions carry no information of their own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

# kind | question | answer; {name} is a fact. The first block is asked about every story.
ASKED = """
All:
who | Who is the story about? | {h}
what | What was {h}? | a {h.kind}
how | How did {h} feel at the end? | {glad}
Lost:
who | Who helped {h} find the {t}? | {f}
who | Who gave {h} the {t}? | {h.his} {giver}
where | Where did {h} lose the {t}? | {p.at} the {p}
where | Where was the {t}? | {w} a {w.look} {w.spot}
what | What did {h} lose? | {h.his} {t}
why | Why was {h} {feel}? | because {h.he} lost {h.his} {t}
Stuck:
who | Who got the {t} down? | {f}
where | Where was {h}? | {p.at} the {p}
where | Where was the {t} stuck? | on {top}
what | What got stuck? | the {t}
what | What did {f} use? | a {tool}
why | Why was {h} {feel}? | because the {t} was stuck
Broken:
who | Who told {h} to be honest? | {f}
who | Who owned the {b}? | {h.his} {owner}
where | Where was {h}? | {p.at} the {p}
what | What did {h} break? | the {b}
why | Why was {h} {feel}? | because {h.he} broke the {b}
Share:
who | Who wanted some {m}? | {f}
where | Where did {h} and {f} eat? | {p.at} the {p}
what | What did {h} not want to share? | the {m}
why | Why was {h} sorry? | because {h.he} did not share
Rescue:
who | Who was stuck? | {f}
who | Who helped {f}? | {h}
where | Where did {h} find {f}? | {p.at} the {p}
what | What did {h} use to help {f}? | a {tool}
what | What was {f}? | a {f.kind}
why | Why was {f} {feel}? | because {f.he} was stuck
Fear:
who | Who helped {h}? | {f}
where | Where did {h} go? | to the {p}
what | What did {h} have to {x.deed}? | the {x}
why | Why was {h} {feel}? | because {h.he} had to {x.deed} the {x}
Learn:
who | Who helped {h} learn? | {f}
where | Where did {h} go? | to the {p}
what | What did {h} want to learn? | to {x}
why | Why was {h} {feel}? | because {h.he} could not {x}
Astray:
who | Who helped {h} find the way home? | {f}
where | Where did {h} get lost? | {p.at} the {p}
what | What did {h} follow? | a {x}
why | Why was {h} lost? | because {h.he} followed a {x}
how | How did {h} feel when {h.he} was lost? | {feel}
Lonely:
who | Who had a {t}? | {f}
where | Where did {h} meet {f}? | {p.at} the {p}
what | What did {f} have? | a {t}
why | Why was {h} {feel}? | because {h.he} had no friends
Build:
who | Who wanted to help {h}? | {f}
where | Where was {h}? | {p.at} the {p}
what | What did {h} want to build? | a {x}
why | Why was {h} {feel}? | because the {x} broke
"""


@dataclass(frozen=True)
class Question:
    """A question about a story. kind: "who", "where", "what", "why" or "how"; answer: a few words."""

    kind: str
    text: str
    answer: str


def questions_about(facts: Mapping[str, str]) -> tuple[Question, ...]:
    """Questions that the facts of a story answer."""
    asked = _asked()
    return tuple(
        Question(kind, _fill(text, facts), _fill(answer, facts))
        for kind, text, answer, needs in asked["All"] + asked[facts["plot"]]
        if needs <= facts.keys()
    )


@cache
def _asked() -> dict[str, list[tuple[str, tuple[str, ...], tuple[str, ...], frozenset[str]]]]:
    """The entries of ASKED by plot; a text is split into literal and fact name in turn."""
    asked: dict[str, list[tuple[str, tuple[str, ...], tuple[str, ...], frozenset[str]]]] = {}
    for line in ASKED.strip().splitlines():
        if line.endswith(":"):
            entries = asked[line[:-1]] = []
            continue
        kind, text, answer = (tuple(re.split(r"\{([\w.]+)\}", part.strip())) for part in line.split("|"))
        entries.append((kind[0], text, answer, frozenset(text[1::2] + answer[1::2])))
    return asked


def _fill(pattern: tuple[str, ...], facts: Mapping[str, str]) -> str:
    """Literals and facts in turn, with "a" put right before a vowel."""
    told = "".join(facts[part] if place % 2 else part for place, part in enumerate(pattern))
    return re.sub(r"\ba (?=[aeiou])", "an ", told)
