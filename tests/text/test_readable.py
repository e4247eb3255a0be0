"""Lower-case tokens become text that a person could have written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.text import WordTokenizer, train_word

TEXT = """One day, a girl named Lily saw Tim and said that Lily was in the U.S. and Mr. Fox had a TV, and I saw Mom,
Mr. Fox and Tim near the sea. Well-known cats, well-known dogs - they ran."""


def reader(*texts: str) -> WordTokenizer:
    return train_word([TEXT, *texts], 10**6)


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time, there was a girl named Lily.",
        "She ran. He ran! Did I run? Yes, I did.",
        'Lily said, "I don\'t know!" Tim ran.',
        '"What is it?" asked Tim. "It\'s a cat," said Lily.',
        '"Stop!" he said. "Go, Lily, go!" He ran.',
        '"Hi," said Tim, "I can go." They went.',
        'Tim called it a "big cat" and ran.',
        'He said: "Look!"',
        "We couldn't see, so we'll go; they've seen, I'm sure, you're right, he'd go.",
        "The girls' hats and Tim's hat were red.",
        "It was 3.5 or 1,000 or 7:30 and cost 5.",
        "In 1, 2, 3 we go.",
        "The well-known cat (a big one) ran.",
        "Mr. Fox had a TV in the U.S. and ran at 5 p.m. or so.",
        "He waited... They ran.",
        "“Wow,” said the fox, “That's it!” He ran.",
        "“Wow!” said the fox. It isn’t his.",
        "It was six o'clock.",
        "'Oh,' he said.",
    ],
)
def test_text_comes_back_as_it_was(text: str) -> None:
    tokenizer = reader(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_white_space_is_lost_and_only_that() -> None:
    tokenizer = reader("b")
    assert tokenizer.decode(tokenizer.encode("One  day,\n\na girl\tsaw Lily .")) == "One day, a girl saw Lily."


def test_a_word_keeps_the_spelling_it_mostly_has_inside_a_sentence() -> None:
    tokenizer = train_word(["I saw Lily and Lily saw a Rose. Rose is a rose, a rose."], 100)
    assert tokenizer.surfaces == {"i": "I", "lily": "Lily"}
    assert tokenizer.decode(tokenizer.encode("i saw lily and rose")) == "I saw Lily and rose"


def test_the_pronoun_is_a_capital_also_where_it_was_seen_at_the_beginning_only() -> None:
    tokenizer = train_word(["I am. I see"], 100)
    assert tokenizer.decode(tokenizer.encode("am i")) == "Am I"


def test_marks_stand_as_they_mostly_stood_in_the_training_text() -> None:
    apart = train_word(["a - b - c / d / e"], 100)
    assert apart.decode(apart.encode("a-b/c")) == "A - b / c"
    together = train_word(["a-b-c/d/e"], 100)
    assert together.decode(together.encode("a - b / c")) == "A-b/c"


def test_a_quote_that_was_never_closed_does_not_turn_the_rest_around() -> None:
    text = 'Tim said, "oh. ' + "a " * 10 + 'Tim said, "go."'
    tokenizer = reader(text)
    assert tokenizer.decode(tokenizer.encode(text)).endswith('Tim said, "Go."')
    long = 'Tim ran to a "cat. ' + "a " * 130 + '"go."'
    tokenizer = reader(long)
    assert tokenizer.decode(tokenizer.encode(long)).endswith(' a "go."')


def test_a_letter_that_has_no_single_capital_stays_small() -> None:
    tokenizer = train_word(["ßa. ŉa"], 100)
    assert tokenizer.decode(tokenizer.encode("ßa. ŉa")) == "ßa. ŉa"


def test_a_continuation_goes_on_after_its_prompt() -> None:
    tokenizer = reader('a "')
    for before, after, want in (
        ("One day", ", a girl", ", a girl"),
        ("One day", "a girl ran", " a girl ran"),
        ("One day.", "a girl", " A girl"),
        ('Lily said, "', "i saw", "I saw"),
        ("", "one day", "One day"),
    ):
        stream = tokenizer.detokenizer([0, *tokenizer.encode(before)])
        assert "".join([*map(stream.push, tokenizer.encode(after)), stream.finish()]) == want


@given(data=st.data())
def test_ids_pushed_one_by_one_give_the_decoded_text(data: st.DataObject) -> None:
    tokenizer = reader("\"'’.,!?-$(")
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    for skip in (False, True):
        stream = tokenizer.detokenizer(skip_special=skip)
        assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids, skip_special=skip)
    assert tokenizer.decode_bytes(ids) == tokenizer.decode(ids).encode("utf-8")
