"""Whether a told story holds together: the same characters from beginning to end, and an end.

Each check reads the text alone, as a careful listener would:

    names      every name belongs to the hero or to one friend who was introduced, and the hero is there at the end
    pronouns   he and she, boy and girl fit somebody who has been introduced
    kinds      "the fox" has been heard of before
    ending     the last sentences are an ending the story world knows
    ended      the teller stopped by itself
    grammar    the world could have told the whole text, word for word

The world's own stories pass all of them. The first five can pass on a story the world would not tell, grammar cannot;
where hero and friend are of both sexes, a "he" that should be "she" is seen by grammar alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache

from moonlet.data.story.notation import ARTICLE, CAPITAL, Inline, Mark, Recall, Sequence, Slot, Text
from moonlet.data.story.world import StoryWorld, story_grammar

CHECKS = ("names", "pronouns", "kinds", "ending", "ended", "grammar")
_FEMALE, _MALE = ("she", "her", "hers", "herself"), ("he", "him", "his", "himself")


@dataclass(frozen=True)
class Consistency:
    """The verdict on one story, check by check."""

    names: bool
    pronouns: bool
    kinds: bool
    ending: bool
    ended: bool
    grammar: bool

    @property
    def consistent(self) -> bool:
        """Characters kept and ending present: all checks but grammar, which asks for more than consistency."""
        return self.names and self.pronouns and self.kinds and self.ending and self.ended


def check_story(text: str, ended: bool = True) -> Consistency:
    """Judge a story.

    Args:
        text: the story, paragraphs separated by newlines.
        ended: whether its teller stopped by itself ([EOS]) rather than at a limit.
    """
    text = text.strip()
    cast = _cast(text)
    return Consistency(
        names=_names_kept(text, cast),
        pronouns=_genders_agree(text, cast),
        kinds=_kinds_known(text),
        ending=bool(_ending().search(text.rpartition("\n")[2])),
        ended=ended,
        grammar=bool(StoryWorld().derivations(text, limit=1)),
    )


def shares(verdicts: Iterable[Consistency]) -> dict[str, float]:
    """The share of stories that pass each check, in 0..1, "consistent" first."""
    rows = [{"consistent": verdict.consistent, **asdict(verdict)} for verdict in verdicts]
    if not rows:
        raise ValueError("there are no stories to judge; tell at least one")
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _cast(text: str) -> dict[str, int]:
    """Names of the characters and the place where each is first met: the first one named, and those introduced."""
    cast: dict[str, int] = {}
    first = _any_name().search(text)
    # After a quotation mark `called` is a verb of speech: "Wait!" called Ben.
    for match in re.finditer(r"(?<=[\w,] )(?:named|called) ([A-Z]\w+)", text):
        cast.setdefault(match[1], match.start(1))
    if first and all(first.start() < place for place in cast.values()):
        cast = {first[0]: first.start(), **cast}
    return cast


def _names_kept(text: str, cast: Mapping[str, int]) -> bool:
    used = {match[0] for match in _any_name().finditer(text)}
    if not cast or len(cast) > 2 or not used <= cast.keys():
        return False
    hero = min(cast, key=lambda name: cast[name])
    return bool(re.search(rf"\b{re.escape(hero)}\b", text.rpartition("\n")[2]))


def _genders_agree(text: str, cast: Mapping[str, int]) -> bool:
    for words, sex in ((_FEMALE, "girl"), (_MALE, "boy")):
        # A name the world does not know may be anybody's.
        met = [place for name, place in cast.items() if _sexes().get(name, sex) == sex]
        pronoun = re.search(rf"\b(?:{'|'.join(words)})\b", text, re.IGNORECASE)
        if pronoun and (not met or pronoun.start() < min(met)):
            return False
    for kind, name in re.findall(r"\b(boy|girl) (?:named|called) ([A-Z]\w+)", text):
        if _sexes().get(name, kind) != kind:
            return False
    # "Tom was a brave boy": the hero may be named before the kind.
    opening = re.match(r"([A-Z]\w+) was an? [^.]*?\b(boy|girl) who\b", text)
    return opening is None or _sexes().get(opening[1], opening[2]) == opening[2]


def _kinds_known(text: str) -> bool:
    met: set[str] = set()
    for match in _kind_mention().finditer(text):
        definite, kind = match[1], match[2]
        if definite and kind not in met:
            return False
        met.add(kind)
    return True


@cache
def _sexes() -> dict[str, str]:
    """Name -> "girl" or "boy"."""
    tables = story_grammar().book.tables
    return {row.surface: sex for sex in ("girl", "boy") for row in tables[f"{sex}.name"]}


@cache
def _any_name() -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(_sexes())})\b")


@cache
def _kind_mention() -> re.Pattern[str]:
    """A character's kind in the singular, and "the" (with at most one word between) where it stands before it."""
    tables = story_grammar().book.tables
    kinds = {row.surface for sex in ("girl", "boy") for row in tables[f"{sex}.kind"]}
    return re.compile(rf"\b([Tt]he (?:\w+ )?)?({'|'.join(sorted(kinds))})\b")


@cache
def _ending() -> re.Pattern[str]:
    """The grammar's rule for endings as a pattern for the last sentences of a text."""
    return re.compile(rf'(?:^|[.!?]"? ){_rule("Ending")}$')


@cache
def _rule(name: str) -> str:
    return _either(_sequence(sequence) for _, sequence in story_grammar().book.rules[name])


def _sequence(sequence: Sequence) -> str:
    """A pattern for one way to say something. What an earlier choice decides is left open."""
    said, waiting = [], 0
    for part in sequence:
        if isinstance(part, Mark):
            waiting |= part.mark
            continue
        piece = _part(part)
        if waiting & CAPITAL:
            piece = f"(?i:{piece})"
        if waiting & ARTICLE:
            piece = f"(?:[Aa]n? ){piece}"
        said.append(piece)
        waiting = 0
    return "".join(said)


def _part(part: Text | Recall | Inline | Slot) -> str:
    book = story_grammar().book
    if isinstance(part, Text):
        return re.escape(part.text)
    if isinstance(part, Recall):
        return _recalled(part.name)
    if isinstance(part, Inline):
        return _either(_sequence(sequence) for _, sequence in part.options)
    if part.silent:
        return ""
    # A name that starts with a remembered value stands for all the names it may become.
    names = [n for n in (*book.rules, *book.tables) if n.endswith(f".{part.name}")] if part.prefix else [part.name]
    return _either(_rule(n) if n in book.rules else _table(n) for n in names)


@cache
def _table(name: str) -> str:
    return _either(re.escape(row.surface) for row in story_grammar().book.tables[name])


def _recalled(name: str) -> str:
    if name in ("h", "f"):
        return r"[A-Z]\w+"
    return r"[A-Za-z]+(?: [a-z]+){0,4}?"


def _either(options: Iterator[str]) -> str:
    return f"(?:{'|'.join(dict.fromkeys(options))})"
