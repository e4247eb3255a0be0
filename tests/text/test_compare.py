"""The numbers that tokenizers are compared by, counted by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from moonlet.text import ByteTokenizer, WordTokenizer, import_sentencepiece, train_bpe
from moonlet.text.compare import compare, measure


def test_bytes_have_one_byte_a_token_and_split_every_word_of_two_bytes() -> None:
    found = measure(ByteTokenizer(), ["a big café", "é"])
    assert (found.bytes_per_token, found.unknown, found.exact) == (1.0, 0.0, True)
    # "a" is whole; "big", "café" and the two bytes of "é" are not.
    assert found.words_split == 3 / 4
    assert found.encode_rate > 0
    assert found.decode_rate > 0


def test_words_are_never_split_and_unknowns_are_counted() -> None:
    found = measure(WordTokenizer(["a", "cat"]), ["a cat a zebra"])
    assert (found.words_split, found.unknown, found.bytes_per_token, found.exact) == (0.0, 1 / 4, 13 / 4, False)


def test_a_word_is_split_where_a_token_ends_inside_it() -> None:
    bpe = train_bpe([" the the the cat"], 274, min_frequency=3)
    assert [bpe.decode([i]) for i in bpe.encode("the cat")] == ["the", " ", "c", "a", "t"]
    assert measure(bpe, ["the cat", " a the"]).words_split == 1 / 4
    # A space before a word, in one token with it, splits nothing.
    spaced = train_bpe(["the" * 3, " the" * 9], 275, min_frequency=2)
    assert len(spaced.encode(" the the")) == 2
    assert measure(spaced, [" the the"]).words_split == 0


def test_a_model_that_changes_the_text_is_asked_for_each_word_by_itself() -> None:
    import io

    library = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat"] * 9), model_writer=model, vocab_size=20, model_type="bpe", minloglevel=2
    )
    tokenizer = import_sentencepiece(model.getvalue())
    found = measure(tokenizer, ["the  cat tac"])
    assert len(tokenizer.encode("the cat")) == 2
    assert found.words_split == 1 / 3
    assert not found.exact


def test_a_size_the_texts_cannot_fill_becomes_the_largest_they_can() -> None:
    def texts() -> Iterator[str]:
        yield "the cat sat on the mat, the cat sat"

    found = compare("bpe", 5000, texts, ["the cat"])
    assert (found.kind, found.asked) == ("bpe", 5000)
    assert 272 < found.reached < 300
    assert compare("word", 5000, texts, ["the cat"]).reached == 17 + 6


def test_nothing_to_measure_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="no text to measure on"):
        measure(ByteTokenizer(), [""])
