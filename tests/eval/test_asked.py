"""Candidates are fair: one of them is right, the others are not, and their order says nothing."""

from __future__ import annotations

import re

import pytest

from moonlet.data.story import StoryWorld
from moonlet.eval.asked import CANDIDATES, KINDS, Asked, form, held_out


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    return held_out(300)


def test_the_answer_is_among_different_candidates_at_a_drawn_place(asked: list[Asked]) -> None:
    places = [0] * CANDIDATES
    for a in asked:
        assert a.candidates[a.right] == a.question.answer
        assert len(set(a.candidates)) == len(a.candidates) == CANDIDATES
        places[a.right] += 1
    assert all(abs(n / len(asked) - 1 / CANDIDATES) < 0.05 for n in places)


def test_all_kinds_are_asked_about_the_test_split(asked: list[Asked]) -> None:
    assert {a.question.kind for a in asked} == set(KINDS)
    stories = [s.text for s in StoryWorld(0).stories(300, split="test")]
    assert list(dict.fromkeys(a.story for a in asked)) == stories


def test_a_wrong_candidate_of_the_story_answers_another_question(asked: list[Asked]) -> None:
    """One that merely stands in the story could be right as well."""
    answers: dict[str, set[str]] = {}
    for a in asked:
        answers.setdefault(a.story, set()).add(a.question.answer)
    for a in asked:
        for candidate in set(a.candidates) - {a.question.answer}:
            told = re.search(rf"\b{re.escape(candidate)}\b", a.story)
            assert not told or candidate in answers[a.story], (a.question, candidate)


def test_hero_and_friend_are_candidates_for_each_other(asked: list[Asked]) -> None:
    friends = [a for a in asked if a.question.text.startswith("Who helped")]
    assert sum(any(c in a.question.text for c in a.candidates) for a in friends) > 0.9 * len(friends)


def test_equal_seeds_give_equal_candidates_and_others_do_not() -> None:
    assert held_out(5) == held_out(5)
    assert held_out(5, seed=1) != held_out(5)


def test_a_form_keeps_the_question_and_drops_the_story() -> None:
    facts = {"h": "Tom", "h.sex": "boy", "f": "Mia", "f.sex": "girl", "t": "old hat"}
    assert form("Who helped Tom find the old hat?", facts) == "Who helped {boy} find the {t}?"
    assert form("Who had an old hat?", facts) == form("Who had a kite?", {**facts, "t": "kite"})


def test_a_blind_guess_beats_nothing_by_much(asked: list[Asked]) -> None:
    """It is what somebody scores who has not read the story: more than nothing, far from all."""
    right = sum(a.guess == a.question.answer for a in asked) / len(asked)
    assert 0.1 < right < 0.3


def test_no_stories_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 stories"):
        held_out(0)
