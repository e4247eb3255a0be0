"""A story with its questions: text and bits follow from the story, and its order gives nothing away."""

from __future__ import annotations

import math
from collections import Counter

from moonlet.data.story import StoryWorld
from moonlet.data.story.asking import prompt, with_questions


def test_every_question_is_asked_once_with_its_answer_behind_it() -> None:
    for story in StoryWorld(0).stories(50):
        text = with_questions(story).text
        assert text.startswith(story.text + "\nQ: ")
        lines = text[len(story.text) :].strip().split("\n")
        asked = Counter(zip(lines[::2], lines[1::2], strict=True))
        assert asked == Counter((f"Q: {q.text}", f"A: {q.answer}") for q in story.questions)


def test_a_prompt_is_the_beginning_of_what_was_trained_on() -> None:
    story = StoryWorld(0).story(3)
    told = with_questions(story).text
    first = next(q for q in story.questions if told.startswith(prompt(story.text, q.text)))
    assert told.startswith(f"{prompt(story.text, first.text)} {first.answer}")


def test_the_bits_are_those_of_the_story_and_of_the_order() -> None:
    for story in StoryWorld(0).stories(20):
        assert len(set(story.questions)) == len(story.questions)
        assert with_questions(story).bits == story.bits + math.log2(math.factorial(len(story.questions)))


def test_orders_are_drawn_evenly_and_repeat_with_the_seed() -> None:
    stories = list(StoryWorld(0).stories(600))
    first = [with_questions(s).text.split("\nQ: ")[1] for s in stories]
    share = sum(line.startswith("Who is the story about?") for line in first) / len(stories)
    expected = sum(1 / len(s.questions) for s in stories) / len(stories)
    assert abs(share - expected) < 0.05
    assert with_questions(stories[0]) == with_questions(stories[0])
    assert any(with_questions(s, 1) != with_questions(s, 2) for s in stories[:3])
