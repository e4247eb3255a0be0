"""Every tokenizer that spells text in bytes: exact round trips, text that stays text, the same ids in Hugging Face.

The word-level kind, which does not, has `test_word.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonlet.text import load, train_tokenizer
from moonlet.text.tokenizer import Tokenizer, default_specials

TEXTS = [
    "Once upon a time, there was a fox named Rusty. Rusty lived in a forest near 12345 other foxes.\n\n",
    "“Wow,” said the fox, “that's a real caf\u00e9! Isn't it?”\r\n\tHe didn't eat 42 cakes.   He ate 7.",
    "[EOS] [BOS] <|reserved_token_3|> [PAD] are ordinary words in a document about tokenizers. [EOS] [EOS]",
    "\u6708\u4e4b\u6697\u9762 \U0001f98a\U0001f319 e\u0301 \u0928\u092e\u0938\u094d\u0924\u0947 \x00\x7f",
] * 3


SIZES = {"byte": 272, "bpe": 330, "sentencepiece": 390}

# U+2581 is how SentencePiece writes a space, so it comes back as one.
any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))


@pytest.fixture(scope="module", params=list(SIZES))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "sentencepiece":
        pytest.importorskip("sentencepiece")
    return train_tokenizer(request.param, TEXTS, SIZES[request.param])


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(tokenizer.kind)
    tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def hugging_face(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_follows_the_protocol(tokenizer: Tokenizer) -> None:
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2)
    assert tokenizer.vocab_size == SIZES[tokenizer.kind]
    assert tokenizer.lossless


@settings(max_examples=300, deadline=None)
@given(text=any_text)
def test_decode_of_encode_is_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode("utf-8")
    assert all(len(tokenizer.specials) <= i < tokenizer.vocab_size for i in ids)


@settings(max_examples=100, deadline=None)
@given(pieces=st.lists(st.sampled_from([*default_specials(), "[", "EOS", "]", "<|", " a", "\n", "[EOS"]), max_size=12))
def test_text_never_becomes_a_special_token(tokenizer: Tokenizer, pieces: list[str]) -> None:
    text = "".join(pieces)
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.specials.values())
    assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special=True) == text


def test_special_names_are_read_when_allowed(tokenizer: Tokenizer) -> None:
    for name, index in tokenizer.specials.items():
        ids = tokenizer.encode(f"a{name} b", allow_special=True)
        assert ids == [*tokenizer.encode("a"), index, *tokenizer.encode(" b")]
        assert tokenizer.decode(ids) == f"a{name} b"
        assert tokenizer.decode(ids, skip_special=True) == "a b"


def test_batch_equals_single(tokenizer: Tokenizer) -> None:
    for allow in (False, True):
        expected = [tokenizer.encode(text, allow_special=allow) for text in TEXTS]
        assert tokenizer.encode_batch(TEXTS, allow_special=allow) == expected
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.encode("") == []


def test_lone_surrogate_is_a_clear_error(tokenizer: Tokenizer) -> None:
    for call in (lambda: tokenizer.encode("ab\ud800"), lambda: tokenizer.encode_batch(["fine", "ab\ud800"])):
        with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at character 2"):
            call()


def test_id_outside_the_vocabulary_is_an_error(tokenizer: Tokenizer) -> None:
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=str(bad)):
            tokenizer.decode([20, bad])


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="\u6708\U0001f98a\u00e9a "), data=st.data())
def test_bytes_of_a_split_stream_join_to_the_text(tokenizer: Tokenizer, text: str, data: st.DataObject) -> None:
    ids = tokenizer.encode(text)
    cut = data.draw(st.integers(0, len(ids)))
    assert tokenizer.decode_bytes(ids[:cut]) + tokenizer.decode_bytes(ids[cut:]) == text.encode("utf-8")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_ids_pushed_one_by_one_give_the_decoded_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    cut = data.draw(st.integers(0, len(ids)))
    for skip in (False, True):
        stream = tokenizer.detokenizer(skip_special=skip)
        pieces = [*map(stream.push, ids), stream.finish()]
        assert "".join(pieces) == tokenizer.decode(ids, skip_special=skip)
    # A continuation starts with whole characters, and a text that is there already is not given again.
    stream = tokenizer.detokenizer(ids[:cut])
    assert "".join([*map(stream.push, ids[cut:]), stream.finish()]) == tokenizer.decode(ids[cut:])


def test_trained_twice_it_is_the_same(tokenizer: Tokenizer) -> None:
    again = train_tokenizer(tokenizer.kind, iter(TEXTS), SIZES[tokenizer.kind])
    assert again.content_hash() == tokenizer.content_hash()


def test_saved_and_loaded_is_the_same_tokenizer(tokenizer: Tokenizer, folder: Path, tmp_path: Path) -> None:
    again = load(folder)
    assert (again.kind, again.vocab_size, again.specials) == (tokenizer.kind, tokenizer.vocab_size, tokenizer.specials)
    assert again.content_hash() == tokenizer.content_hash()
    assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    again.save(tmp_path)
    names = sorted(path.name for path in folder.iterdir())
    extra = ["tokenizer.model"] if tokenizer.kind == "sentencepiece" else []
    assert names == ["tokenizer.json", *extra, "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(any_text, st.lists(st.sampled_from(["[EOS]", " n't", " .", "a", "\u6708", "\r\n"])).map("".join)))
def test_hugging_face_gives_equal_ids_and_text(tokenizer: Tokenizer, hugging_face: Any, text: str) -> None:
    ids = tokenizer.encode(text)
    assert hugging_face(text, split_special_tokens=True)["input_ids"] == ids
    assert hugging_face(text)["input_ids"] == tokenizer.encode(text, allow_special=True)
    assert hugging_face.decode(ids) == text
    # Of half a character and what follows it, Hugging Face shows each byte as unknown where it falls back to bytes.
    if tokenizer.kind != "sentencepiece":
        assert hugging_face.decode(ids[1:]) == tokenizer.decode(ids[1:])


def test_hugging_face_knows_the_special_tokens(tokenizer: Tokenizer, hugging_face: Any) -> None:
    assert len(hugging_face) == tokenizer.vocab_size
    assert hugging_face.bos_token_id == tokenizer.bos_id
    assert hugging_face.eos_token_id == tokenizer.eos_id
    assert hugging_face.pad_token_id == tokenizer.pad_id
    assert hugging_face.decode([0, *tokenizer.encode("hi"), 5, 1], skip_special_tokens=True) == "hi"


def test_hugging_face_loads_it_beside_a_model_config(tokenizer: Tokenizer, folder: Path, tmp_path: Path) -> None:
    """A checkpoint folder holds a config.json, whose model type must not change the tokenizer."""
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deepseek_v3"}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert loaded(text, split_special_tokens=True)["input_ids"] == tokenizer.encode(text)


def test_a_hugging_face_copy_of_the_folder_loads(tokenizer: Tokenizer, hugging_face: Any, tmp_path: Path) -> None:
    if tokenizer.kind == "sentencepiece":
        pytest.skip("Hugging Face does not keep the model file, which alone is read back")
    hugging_face.save_pretrained(tmp_path)
    assert load(tmp_path).content_hash() == tokenizer.content_hash()


def test_the_room_is_light() -> None:
    heavy = {"torch", "tokenizers", "numpy", "sentencepiece"}
    code = f"import sys, moonlet.text, moonlet.data; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
