"""Counts by hand and by brute force: distinct-n, repetition, longest repeats and longest copies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.eval.diversity import (
    cut_alike,
    distinct,
    diversity,
    longest_copies,
    longest_repeat,
    repetition,
    words,
)

few_words = st.lists(st.sampled_from(["a", "b", "c"]), max_size=30)


def spans(text: list[str], n: int) -> list[tuple[int, tuple[str, ...]]]:
    return [(i, tuple(text[i : i + n])) for i in range(len(text) - n + 1)]


def test_words_are_lower_cased_with_signs_of_their_own() -> None:
    assert words('"Don\'t!" said Tom, 3 times.') == ['"', "don't", "!", '"', "said", "tom", ",", "3", "times", "."]


def test_distinct_counts_over_all_texts_and_never_across_their_borders() -> None:
    texts = [["a", "b", "a"], ["a", "b"]]
    assert distinct(texts, 1) == 2 / 5
    assert distinct(texts, 2) == 2 / 3
    assert distinct(texts, 3) == 1.0
    assert distinct(texts, 4) == 0.0


def test_repetition_counts_within_each_text_only() -> None:
    assert repetition([["a", "b", "c"], ["a", "b", "c"]], 2) == 0.0
    assert repetition([["a", "b", "a", "b", "a"]], 2) == 2 / 4


@given(few_words)
def test_longest_repeat_equals_brute_force(text: list[str]) -> None:
    best = max(
        (
            n
            for n in range(len(text) // 2 + 1)
            for i, a in spans(text, n)
            for j, b in spans(text, n)
            if a == b and j - i >= n and n
        ),
        default=0,
    )
    assert longest_repeat(text) == best


@given(st.lists(few_words, min_size=1, max_size=4), st.lists(few_words, max_size=4))
def test_longest_copies_equal_brute_force(texts: list[list[str]], training: list[list[str]]) -> None:
    def shared(one: list[str], other: list[str], n: int) -> bool:
        return bool({s for _, s in spans(one, n)} & {s for _, s in spans(other, n)})

    expected = [max((n for d in training for n in range(1, 31) if shared(t, d, n)), default=0) for t in texts]
    assert longest_copies(texts, [" ".join(d) for d in training]) == expected


def test_words_nobody_told_separate_copies() -> None:
    assert longest_copies([["a", "b", "c", "d"]], ["a b x c d", "b c"]) == [2]


def test_a_reference_has_as_many_texts_of_the_same_lengths() -> None:
    reference = cut_alike([["w"] * 9, ["v"] * 5, ["u"] * 7], [["x"] * 3, ["y"] * 6])
    assert sorted(map(len, reference)) == [3, 6]
    assert cut_alike([["w"] * 2], [["x"] * 3, ["y"] * 6]) == [["w"] * 2]


def test_a_parrot_is_told_from_a_teller() -> None:
    training = ["once there was a fox who loved the moon very much", "a hen sat on a red wall"]
    parrot = diversity([words(training[0])] * 3, training)
    teller = diversity(
        [words("a fox sat on the moon"), words("the hen loved a wall"), words("red foxes sang")], training
    )
    assert parrot.copied_longest == 11
    assert (teller.copied_longest or 0) <= 3
    assert parrot.distinct[1] < teller.distinct[1]
    assert diversity([["a"]]).copied_mean is None


def test_no_words_is_an_error() -> None:
    with pytest.raises(ValueError, match="no word"):
        diversity([[], []])
