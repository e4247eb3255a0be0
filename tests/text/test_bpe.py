"""Byte-level BPE: what training promises."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from moonlet.text import BPETokenizer, train_bpe

TEXTS = ["the cat sat on the mat and the other cat sat too. " * 3, "the hat, the bat; 1234567 2024!\n\n"] * 4


def test_same_texts_give_the_same_tokenizer_on_any_number_of_threads() -> None:
    code = f"from moonlet.text import train_bpe; print(train_bpe({TEXTS!r}, 290).content_hash())"
    hashes = {train_bpe(TEXTS, 290).content_hash(), train_bpe(iter(TEXTS), 290).content_hash()}
    for threads in ("1", "2"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        hashes.add(run.stdout.strip())
    assert len(hashes) == 1


def test_other_texts_sizes_and_patterns_give_other_hashes() -> None:
    base = train_bpe(TEXTS, 290)
    others = [train_bpe(TEXTS, 289), train_bpe(["something else entirely, else entirely"] * 9, 290)]
    others.append(BPETokenizer(base.merges, r"\s+"))
    assert len({tokenizer.content_hash() for tokenizer in [base, *others]}) == 4


def test_frequent_words_become_one_token() -> None:
    tokenizer = train_bpe(TEXTS, 290)
    assert len(tokenizer.encode(" the")) == 1
    assert len(tokenizer.encode(" the cat")) == 2


def test_numbers_are_cut_into_groups_of_three_digits() -> None:
    tokenizer = train_bpe(["123456123456"] * 50, 276)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("1234561")] == ["123", "456", "1"]


def test_a_word_keeps_its_contraction_and_the_mark_before_it() -> None:
    tokenizer = train_bpe(["\"she's \"she's"] * 50, 277)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("\"she's")] == ["\"she's"]


def test_a_vocabulary_the_texts_cannot_fill_is_an_error_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"vocab_size 4096 cannot be reached: these texts give \d+ tokens"):
        train_bpe(TEXTS, 4096)
    with pytest.raises(ValueError, match="vocab_size 200 is below 272"):
        train_bpe(TEXTS, 200)


def test_the_smallest_vocabulary_needs_no_text() -> None:
    tokenizer = train_bpe([], 272)
    assert tokenizer.vocab_size == 272
    assert tokenizer.decode(tokenizer.encode("any \U0001f98a")) == "any \U0001f98a"


def test_merges_that_spell_a_special_token_or_come_from_nowhere_are_refused() -> None:
    spelled = [("[", "E"), ("[E", "O"), ("[EO", "S"), ("[EOS", "]")]
    with pytest.raises(ValueError, match="special token"):
        BPETokenizer(spelled)
    with pytest.raises(ValueError, match="no earlier merge"):
        BPETokenizer([("ab", "c")])


def test_two_merges_may_make_one_token() -> None:
    tokenizer = BPETokenizer([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")])
    assert tokenizer.vocab_size == 272 + 3
    assert tokenizer.decode(tokenizer.encode("abc bc ab")) == "abc bc ab"


def test_training_on_a_lone_surrogate_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="lone surrogate"):
        train_bpe([*TEXTS, "\udc00"], 280)
