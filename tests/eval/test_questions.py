"""Answers are counted right when they are, kind by kind, by both measures; and the same twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from moonlet.eval import questions
from moonlet.eval.asked import held_out
from moonlet.eval.questions import ask, context_of, first_line, same
from moonlet.eval.score import Passage, Score
from moonlet.generate import Completion
from moonlet.text import ByteTokenizer

STORIES = 2


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model(vocab_size=272, max_position_embeddings=2048, hidden_size=16, num_hidden_layers=1)


def oracle(share: int) -> Callable[[Any, Sequence[Passage]], list[Score]]:
    """Finds the answer of every question but each `share`-th likelier a token than the other candidates."""
    tokenizer = ByteTokenizer()
    truths = [(a.story, a.question.text, a.question.answer) for a in held_out(STORIES)]
    spared = set(truths[::share]) if share else set()

    def score(model: Any, passages: Sequence[Passage]) -> list[Score]:
        found = []
        for p in passages:
            text = tokenizer.decode(p.ids[1:])
            right = any(s in text and q in text and text.endswith(a) and (s, q, a) not in spared for s, q, a in truths)
            found.append(Score((0.5 if right else 1.0) * p.count, p.count, right))
        return found

    return score


def test_a_model_that_knows_chooses_and_writes_all_answers(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {context_of(a, False): a.question.answer for a in held_out(STORIES)}
    answers |= {context_of(a, True): a.question.answer for a in held_out(STORIES)}

    def complete(model: Any, tokenizer: Any, prompts: Sequence[str], *rest: Any, **named: Any) -> list[Completion]:
        return [Completion(p, f" {answers[p]}", (), "stop") for p in prompts]

    monkeypatch.setattr(questions, "score", oracle(0))
    monkeypatch.setattr(questions, "complete", complete)
    scores = ask(model, ByteTokenizer(), STORIES, 2048)
    for measure in (scores.chosen, scores.exact):
        assert list(measure) == ["who", "where", "what", "why", "how", "all"]
        assert all(tally.share == 1.0 for tally in measure.values())
        assert measure["all"].total == sum(measure[kind].total for kind in measure if kind != "all")
    assert scores.chosen["all"].chance == 0.25
    assert scores.exact["all"].chance < 0.4


def test_wrong_choices_are_counted_as_such(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "score", oracle(3))
    monkeypatch.setattr(
        questions, "complete", lambda m, t, prompts, *r, **n: [Completion(p, "?", (), "stop") for p in prompts]
    )
    scores = ask(model, ByteTokenizer(), STORIES, 2048)
    total = scores.chosen["all"].total
    wrong = len(range(0, total, 3))
    # A question without any likelier candidate falls to its first one, which may be right.
    assert total - wrong <= scores.chosen["all"].right <= total - wrong + wrong // 2
    assert scores.exact["all"].right == 0


def test_two_evaluations_of_a_real_model_are_equal(model: Any) -> None:
    first = ask(model, ByteTokenizer(), 1, 2048)
    assert first == ask(model, ByteTokenizer(), 1, 2048)
    assert first.exact["all"].right == 0
    assert first.to_dict()["chosen"]["all"]["chance"] == 0.25


def test_the_likelier_form_of_a_question_is_taken(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def likes(mark: str) -> Callable[[Any, Sequence[Passage]], list[Score]]:
        def score(model: Any, passages: Sequence[Passage]) -> list[Score]:
            texts = [ByteTokenizer().decode(p.ids[1:]) for p in passages]
            return [Score(1.0 if ("\nQ: " in text) == (mark == "Q") else 2.0, 1, False) for text in texts]

        return score

    for mark, plainly in (("Q", False), ("", True)):
        monkeypatch.setattr(questions, "score", likes(mark))
        monkeypatch.setattr(
            questions, "complete", lambda m, t, ps, *r, **n: [Completion(p, "", (), "stop") for p in ps]
        )
        assert ask(model, ByteTokenizer(), 1, 2048).asked_plainly is plainly


@pytest.mark.parametrize(
    ("written", "line"),
    [(" Mia\nQ: Who?", "Mia"), ("Mia Q: who", "Mia"), (" mia q : who", "mia"), ("Mia", "Mia"), ("", "")],
)
def test_an_answer_ends_with_its_line_or_the_next_question(written: str, line: str) -> None:
    assert first_line(written) == line


def test_capitals_spaces_and_a_full_stop_do_not_make_an_answer_wrong() -> None:
    assert same(" in the  Park. ", "in the park")
    assert not same("in the park and", "in the park")
    assert not same("", "in the park")
