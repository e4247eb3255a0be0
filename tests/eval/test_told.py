"""Told texts: drawn alike each time, cut where questions begin, judged as stories where there is a grammar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moonlet.data.story import StoryWorld
from moonlet.data.story.asking import with_questions
from moonlet.eval.told import judge, story_of, tell
from moonlet.generate import Completion
from moonlet.text import ByteTokenizer


def told(text: str, ended: bool = True) -> Completion:
    return Completion("", text, (), "stop" if ended else "length")


def test_texts_of_one_seed_are_equal_and_differ_among_themselves(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(vocab_size=272, max_position_embeddings=64)
    first = [c.text for c in tell(model, ByteTokenizer(), 3)]
    assert first == [c.text for c in tell(model, ByteTokenizer(), 3)]
    assert len(set(first)) == 3
    assert first != [c.text for c in tell(model, ByteTokenizer(), 3, seed=1)]
    with pytest.raises(ValueError, match="0 samples"):
        tell(model, ByteTokenizer(), 0)


def test_the_worlds_own_stories_are_all_consistent_and_in_the_grammar() -> None:
    stories = [s.text for s in StoryWorld(0).stories(20, split="test")]
    found = judge(map(told, stories), stories, None, True)
    assert found.consistency is not None
    assert set(found.consistency.values()) == {1.0}
    assert found.diversity == found.reference
    assert found.diversity.copied_longest is None


def test_questions_behind_a_story_are_no_part_of_it() -> None:
    story = StoryWorld(0).story(0)
    assert story_of(told(with_questions(story).text, ended=False)) == (story.text, True)
    assert story_of(told(story.text, ended=False)) == (story.text, False)


def test_other_texts_are_not_judged_as_stories() -> None:
    found = judge([told("a b c d")], ["a b"], ["c d e"], False)
    assert found.consistency is None
    assert (found.diversity.copied_longest, found.reference.copied_longest) == (2, 0)
