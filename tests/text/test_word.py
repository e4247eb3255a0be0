"""The word-level tokenizer: its tokens are those of one regular expression, and its text is for people to read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.text import Tokenizer, WordTokenizer, load, train_word
from moonlet.text.tokenizer import default_specials

STORY = """Once upon a time, there was a little girl named Lily. She didn't like the sea, but Lily loved the park.
"What is it, Mom?" Lily asked. "I don't know," said her mom, "but I think it's 3.5 feet long (or 1,000)!"
They laughed. "Stop!" he said. The girls' hats were red - so was the well-known TV. It cost $5 at 7:30."""
SPECIALS = default_specials()
# Characters that every version of Unicode in use knows.
known = st.characters(exclude_categories=["Cs", "Cn"])
mixed = st.one_of(
    st.text(known),
    st.lists(st.sampled_from([*SPECIALS, "<unk>", " ", "\n", "Lily", "'", '"', "I", ".", "a"])).map("".join),
)


def law(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


@pytest.fixture(scope="module")
def story() -> WordTokenizer:
    return train_word([STORY], 1000)


@pytest.fixture(scope="module")
def hugging_face(story: WordTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("word")
    story.save(folder)
    return AutoTokenizer.from_pretrained(folder)


def covering(texts: Sequence[str]) -> WordTokenizer:
    """A tokenizer that knows every word of `texts`."""
    return train_word([*texts, "a"], 10**6)


def test_it_follows_the_protocol(story: WordTokenizer) -> None:
    assert isinstance(story, Tokenizer)
    assert (story.bos_id, story.eos_id, story.pad_id, story.unk_id, story.lossless) == (0, 1, 2, 16, False)


@given(text=mixed)
def test_ids_are_those_of_the_regular_expression(story: WordTokenizer, text: str) -> None:
    index = {token: i for i, token in enumerate(story.tokens, start=17)}
    assert story.encode(text) == [index.get(token, 16) for token in law(text)]
    full = covering([text])
    assert [full.piece(i).decode() for i in full.encode(text)] == law(text)


@given(texts=st.lists(mixed, max_size=3))
def test_decoded_text_encodes_to_the_same_ids(texts: list[str]) -> None:
    tokenizer = covering(texts)
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.encode(tokenizer.decode(ids)) == ids


@given(data=st.data())
def test_any_ids_but_unknowns_survive_their_own_text(story: WordTokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(17, story.vocab_size - 1), max_size=40))
    assert story.encode(story.decode(ids)) == ids


def test_vocabulary_is_the_most_frequent_words_and_ties_are_alphabetical() -> None:
    tokenizer = train_word(["b a c, A b. a d"], 17 + 3)
    assert tokenizer.tokens == ["a", "b", ","]
    assert train_word(["b a c, A b. a d"], 1000, min_frequency=2).tokens == ["a", "b"]
    assert tokenizer.vocab_size == 20


def test_same_words_in_any_order_give_the_same_hash() -> None:
    texts = STORY.splitlines()
    assert train_word(texts, 60).content_hash() == train_word(iter(texts[::-1]), 60).content_hash()
    changed = [train_word(texts, 59), WordTokenizer(["a"]), WordTokenizer(["a"], {"a": "A"}), WordTokenizer(["b"])]
    changed += [WordTokenizer(["-"]), WordTokenizer(["-"], glue={"-": "<"})]
    assert len({tokenizer.content_hash() for tokenizer in changed}) == 6


def test_a_word_whose_small_form_depends_on_its_neighbours_keeps_it() -> None:
    """The sigma of "ΑΣ" is final, that of "ΑΣ·α" is not: written in capitals, the word would be read as another."""
    tokenizer = train_word(["a ΑΣ a ΑΣ, α·β"], 100)
    ids = tokenizer.encode("ας·α")
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
    assert 16 not in ids


def test_a_word_outside_the_vocabulary_is_one_unknown(story: WordTokenizer) -> None:
    ids = story.encode("Lily saw zebras.")
    assert ids.count(16) == 2
    assert story.decode(ids) == "Lily <unk> <unk>."


@given(text=mixed)
def test_text_never_becomes_a_special_token(story: WordTokenizer, text: str) -> None:
    assert not set(story.encode(text)) & set(SPECIALS.values())


def test_the_text_unk_is_three_tokens_also_where_specials_are_allowed(story: WordTokenizer) -> None:
    full = covering(["<unk>"])
    for allow in (False, True):
        assert [full.piece(i) for i in full.encode("<unk>", allow_special=allow)] == [b"<", b"unk", b">"]


def test_special_names_are_read_when_allowed_and_begin_a_new_text(story: WordTokenizer) -> None:
    ids = story.encode("[BOS]the sea[EOS]she", allow_special=True)
    assert (ids[0], ids[3]) == (0, 1)
    assert story.decode(ids) == "[BOS]The sea[EOS]She"
    assert story.decode(ids, skip_special=True) == "The seaShe"


def test_lone_surrogates_and_ids_outside_the_vocabulary_are_errors(story: WordTokenizer) -> None:
    for call in (lambda: story.encode("ab\ud800"), lambda: train_word(["ab\ud800"], 100)):
        with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at character 2"):
            call()
    for bad in (-1, story.vocab_size):
        with pytest.raises(ValueError, match=str(bad)):
            story.decode([20, bad])


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: train_word(["a"], 17), "vocab_size 17 leaves no room"),
        (lambda: train_word([" "], 100), "no word is there 1 times"),
        (lambda: train_word(["a b"], 100, min_frequency=3), "no word is there 3 times"),
        (lambda: WordTokenizer(["A"]), "no word in lower case"),
        (lambda: WordTokenizer(["a b"]), "no word in lower case"),
        (lambda: WordTokenizer(["a", "a"]), "twice"),
        (lambda: WordTokenizer(["a"], {"a": "B"}), "no spelling"),
        (lambda: WordTokenizer(["a"], glue={"-": "x"}), "a mark has one of"),
    ],
)
def test_impossible_vocabularies_are_refused(call: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        call()


def test_saved_and_loaded_is_the_same_tokenizer(story: WordTokenizer, tmp_path: Path) -> None:
    story.save(tmp_path / "a")
    again = load(tmp_path / "a")
    assert again.content_hash() == story.content_hash()
    assert again.decode(again.encode(STORY)) == story.decode(story.encode(STORY))
    again.save(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@given(text=mixed)
def test_hugging_face_gives_equal_ids(story: WordTokenizer, hugging_face: Any, text: str) -> None:
    assert hugging_face(text, split_special_tokens=True)["input_ids"] == story.encode(text)
    assert hugging_face(text)["input_ids"] == story.encode(text, allow_special=True)


def test_hugging_face_splits_every_character_of_unicode_alike() -> None:
    import unicodedata

    from tokenizers import Tokenizer as Engine

    tokenizer = WordTokenizer(["a"])
    engine = Engine.from_str(json.dumps(tokenizer.pipeline()))
    characters = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cs", "Cn")]
    # In lower case already: its own Unicode may know capitals that Python's does not.
    text = "a".join(characters).lower()
    assert [piece for piece, _ in engine.pre_tokenizer.pre_tokenize_str(text)] == law(text)


def test_hugging_face_knows_the_final_sigma(hugging_face: Any) -> None:
    from tokenizers import Tokenizer as Engine

    engine = Engine.from_str(json.dumps(WordTokenizer(["a"]).pipeline()))
    for text in ("ΟΔΟΣ", "ΟΔΟΣ. ΣΑΣ", "Σ"):
        assert engine.normalizer.normalize_str(text) == text.lower()


def test_hugging_face_knows_the_special_tokens_and_a_copy_loads(
    story: WordTokenizer, hugging_face: Any, tmp_path: Path
) -> None:
    assert len(hugging_face) == story.vocab_size
    assert (hugging_face.bos_token_id, hugging_face.eos_token_id, hugging_face.pad_token_id) == (0, 1, 2)
    hugging_face.save_pretrained(tmp_path)
    assert load(tmp_path).content_hash() == story.content_hash()
