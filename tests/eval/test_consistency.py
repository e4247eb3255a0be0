"""The world's own stories pass every check; each kind of corruption is caught by the check that is named for it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from moonlet.data.story import Story, StoryWorld
from moonlet.eval.consistency import CHECKS, Consistency, check_story, shares

NAMES = ("Lily", "Mia", "Nora", "Tom", "Finn", "Max")


@pytest.fixture(scope="module")
def stories() -> list[Story]:
    return list(StoryWorld(0).stories(400, split="test"))


def test_stories_of_the_world_pass_every_check(stories: list[Story]) -> None:
    for story in stories:
        verdict = check_story(story.text)
        assert verdict == Consistency(*[True] * len(CHECKS)), story.text
        assert verdict.consistent


def third_name(story: Story) -> str:
    """The friend becomes somebody else in the last paragraphs."""
    stranger = next(name for name in NAMES if name not in story.text)
    head, mark, tail = story.text.rpartition("\n")
    friend = story.characters[1] if story.characters[1] in tail else story.characters[0]
    return head + mark + re.sub(rf"\b{friend}\b", stranger, tail)


def hero_lost(story: Story) -> str:
    """The friend ends the story, the hero is not heard of."""
    hero, friend = story.characters
    head, mark, tail = story.text.rpartition("\n")
    return head + mark + re.sub(rf"\b{hero}\b", friend, tail)


def pronouns_swapped(story: Story) -> str:
    """The hero is a she in one sentence and a he in the next, where nobody else is there yet."""
    other = {"he": "she", "she": "he", "his": "her", "her": "his", "him": "her"}
    first, mark, rest = story.text.partition("\n")
    pattern = r"\b(he|she|his|her|him)\b"
    swapped = re.sub(pattern, lambda m: other[m[0]], first)
    swapped = re.sub(r"\b(He|She|His|Her)\b", lambda m: other[m[0].lower()].capitalize(), swapped)
    return swapped + mark + rest


def kind_changed(story: Story) -> str:
    """The fox becomes another animal, of which nothing was told, between paragraphs."""
    kind = story.facts["h.kind"]
    other = next(k for k in ("turtle", "monkey", "puppy", "kitten") if not re.search(rf"\b{k}\b", story.text))
    first, mark, rest = story.text.partition("\n")
    return first + mark + re.sub(rf"\b([Tt]he (?:\w+ )?){kind}\b", rf"\g<1>{other}", rest)


def last_paragraph_cut(story: Story) -> str:
    """The story stops before its end."""
    return story.text.rpartition("\n")[0]


def last_words_cut(story: Story) -> str:
    """The story stops in the middle of a sentence."""
    return " ".join(story.text.split(" ")[:-2])


CORRUPTIONS: list[tuple[str, Callable[[Story], str]]] = [
    ("names", third_name),
    ("names", hero_lost),
    ("pronouns", pronouns_swapped),
    ("kinds", kind_changed),
    ("ending", last_paragraph_cut),
    ("ending", last_words_cut),
]


@pytest.mark.parametrize(("check", "corrupt"), CORRUPTIONS, ids=lambda value: getattr(value, "__name__", value))
def test_a_corruption_is_caught_by_its_check(stories: list[Story], check: str, corrupt: Callable[[Story], str]) -> None:
    spoiled = [(s.text, corrupt(s)) for s in stories[:150]]
    changed = [after for before, after in spoiled if after != before]
    assert len(changed) > 60
    for text in changed:
        verdict = check_story(text)
        assert not getattr(verdict, check), text
        assert not verdict.consistent
        assert not verdict.grammar


def test_a_text_cut_at_a_limit_has_not_ended(stories: list[Story]) -> None:
    verdict = check_story(stories[0].text, ended=False)
    assert not verdict.ended
    assert not verdict.consistent
    assert verdict.ending


def test_what_only_the_grammar_can_see_is_seen_by_it(stories: list[Story]) -> None:
    story = next(s for s in stories if s.plot == "Lost")
    head, mark, tail = story.text.partition("\n")
    verdict = check_story(head + mark + re.sub(rf"\b{story.facts['t']}\b", "trombone", tail, count=1))
    assert verdict.consistent
    assert not verdict.grammar


def test_verbs_of_speech_do_not_introduce_anybody() -> None:
    text = 'Tom was a brave boy who lived in a hut.\n"Wait!" called Max.\nTom was glad.'
    assert not check_story(text).names


@pytest.mark.parametrize("text", ["", "\n", "the", "Tom", "a boy named", '"', "He ran. She ran."])
def test_any_text_is_judged(text: str) -> None:
    assert not check_story(text).consistent


def test_shares_are_shares_of_stories(stories: list[Story]) -> None:
    verdicts = [check_story(stories[0].text), check_story(stories[1].text, ended=False)]
    found = shares(verdicts)
    assert list(found) == ["consistent", *CHECKS]
    assert found["consistent"] == found["ended"] == 0.5
    assert found["names"] == 1.0
    with pytest.raises(ValueError, match="no stories"):
        shares([])
