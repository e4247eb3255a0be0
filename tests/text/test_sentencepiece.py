"""SentencePiece: the ids are the library's own, for models trained here and for models of other people."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.text import SentencePieceTokenizer, import_sentencepiece, load, train_sentencepiece
from moonlet.text.tokenizer import default_specials

library = pytest.importorskip("sentencepiece")

TEXTS = [f"The cat number {i} sat on the mat, and the other cat sat too.\n\tIt was a café!  Yes." for i in range(40)]
known = st.text(st.characters(exclude_categories=["Cs"]))
spaced = st.lists(st.sampled_from(["the", " cat", "  ", "\n", "<s>", "</s>", "[EOS]", "<0x41>", "▁", "sat."])).map(
    "".join
)


def foreign(**settings: Any) -> bytes:
    """A model as somebody else would train it."""
    model = io.BytesIO()
    settings = {"vocab_size": 90, "model_type": "bpe", "minloglevel": 2, **settings}
    texts = iter(settings.pop("texts", TEXTS))
    library.SentencePieceTrainer.train(sentence_iterator=texts, model_writer=model, **settings)
    return model.getvalue()


FOREIGN: dict[str, dict[str, Any]] = {
    "bpe": {},
    "unigram": {"model_type": "unigram", "vocab_size": 45},
    "unigram with bytes": {"model_type": "unigram", "vocab_size": 300, "byte_fallback": True},
    "as it stands": {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
        "vocab_size": 340,
    },
    "all ids of its own": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": 3, "control_symbols": ["<call>"]},
    "no begin, no end": {"bos_id": -1, "eos_id": -1},
    "unigram that could spell its own names": {
        "model_type": "unigram",
        "vocab_size": 314,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "texts": [f"{text} < > / k x ABCDEF123456789" for text in TEXTS],
    },
    "characters": {"model_type": "char", "vocab_size": 30},
    "found anywhere": {"user_defined_symbols": ["<sep>", "e c"]},
}


@pytest.fixture(scope="module")
def trained() -> SentencePieceTokenizer:
    return train_sentencepiece(TEXTS, 330)


@pytest.fixture(scope="module", params=[None, *FOREIGN], ids=lambda name: name or "trained")
def tokenizer(request: pytest.FixtureRequest, trained: SentencePieceTokenizer) -> SentencePieceTokenizer:
    return import_sentencepiece(foreign(**FOREIGN[request.param])) if request.param else trained


@given(text=st.one_of(known, spaced))
def test_ids_and_text_equal_the_library_s(tokenizer: SentencePieceTokenizer, text: str) -> None:
    engine = library.SentencePieceProcessor(model_proto=tokenizer.model)
    ids = tokenizer.encode(text)
    assert ids == engine.encode(text)
    assert tokenizer.encode_batch([text, "the cat"]) == [ids, engine.encode("the cat")]
    assert tokenizer.decode(ids) == engine.decode(ids)


@given(data=st.data())
def test_ids_pushed_one_by_one_give_the_decoded_text(tokenizer: SentencePieceTokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    for skip in (False, True):
        stream = tokenizer.detokenizer(skip_special=skip)
        assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids, skip_special=skip)


@given(data=st.data())
def test_any_pieces_have_the_library_s_text(tokenizer: SentencePieceTokenizer, data: st.DataObject) -> None:
    engine = library.SentencePieceProcessor(model_proto=tokenizer.model)
    # A lone byte is no character, and control pieces have no text there.
    pieces = [i for i in range(len(tokenizer.pieces)) if not (engine.is_byte(i) or engine.is_control(i))]
    spaces = [i for i in pieces if tokenizer.piece(i).strip() == b""]
    ids = data.draw(st.lists(st.sampled_from(spaces or pieces), max_size=3)) + data.draw(
        st.lists(st.sampled_from(pieces), max_size=9)
    )
    assert tokenizer.decode(ids) == engine.decode(ids)


@given(text=st.one_of(known, spaced))
def test_text_never_becomes_a_special_token(tokenizer: SentencePieceTokenizer, text: str) -> None:
    assert not set(tokenizer.encode(text)) & set(tokenizer.specials.values())


def test_special_names_are_read_when_allowed(tokenizer: SentencePieceTokenizer) -> None:
    for name, index in tokenizer.specials.items():
        ids = tokenizer.encode(f"a{name}the cat", allow_special=True)
        assert ids == [*tokenizer.encode("a"), index, *tokenizer.encode("the cat")]
    assert {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} <= set(tokenizer.specials.values())


def test_a_continuation_keeps_the_space_that_the_start_of_a_text_loses() -> None:
    tokenizer = import_sentencepiece(foreign())
    prompt, more = tokenizer.encode("the cat"), tokenizer.encode("sat")
    assert tokenizer.decode(more) == "sat"
    for before, want in (([tokenizer.bos_id, *prompt], " sat"), ([tokenizer.bos_id], "sat"), ([], "sat")):
        stream = tokenizer.detokenizer(before)
        assert "".join([*map(stream.push, more), stream.finish()]) == want


def test_trained_ids_begin_with_the_specials_and_the_bytes(trained: SentencePieceTokenizer) -> None:
    assert trained.specials == default_specials()
    assert trained.unk_id == 16
    assert [trained.piece(17 + byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert trained.vocab_size == 330


def test_an_imported_model_keeps_its_own_ids_and_gets_those_it_lacks() -> None:
    own = import_sentencepiece(foreign(**FOREIGN["all ids of its own"]))
    assert (own.pad_id, own.eos_id, own.unk_id, own.bos_id) == (0, 1, 2, 3)
    assert own.specials["<call>"] == 4
    assert own.vocab_size == own.engine.get_piece_size()
    bare = import_sentencepiece(foreign(**FOREIGN["no begin, no end"]))
    size = bare.engine.get_piece_size()
    assert bare.specials == {"[BOS]": size, "[EOS]": size + 1, "[PAD]": size + 2}
    assert bare.vocab_size == size + 3
    assert bare.decode([size, *bare.encode("the cat"), size + 1]) == "[BOS]the cat[EOS]"


def test_saved_and_loaded_is_the_same_tokenizer(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.model"):
        again = load(path)
        assert again.content_hash() == tokenizer.content_hash()
        assert again.specials == tokenizer.specials
        assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    assert (tmp_path / "tokenizer.model").read_bytes() == tokenizer.model


def test_hugging_face_reads_the_folder_without_the_library(
    tokenizer: SentencePieceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    other = AutoTokenizer.from_pretrained(tmp_path)
    assert len(other) == tokenizer.vocab_size
    assert (other.bos_token_id, other.eos_token_id, other.pad_token_id) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
    )
    # Symbols found anywhere have no equal there: see the next test.
    if "<sep>" not in tokenizer.pieces:
        for text in ("The cat sat on the mat.", "It was a mat, and  the cat too", "cat 12"):
            assert other(text, split_special_tokens=True)["input_ids"] == tokenizer.encode(text)


def test_the_folder_says_how_near_hugging_face_comes(trained: SentencePieceTokenizer, tmp_path: Path) -> None:
    found = {name: import_sentencepiece(foreign(**settings)) for name, settings in FOREIGN.items()}
    assert trained.hugging_face() == "exact"
    assert found["as it stands"].hugging_face() == "exact"
    assert found["unigram that could spell its own names"].hugging_face() == "exact"
    assert found["found anywhere"].hugging_face() == "close"
    found["found anywhere"].save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["moonlet"]["hugging_face"] == "close"


@pytest.mark.parametrize("content", [b"", b"no model", b"\x00\x01", b"\n\x05abc"])
def test_a_file_that_is_no_model_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.model"
    path.write_bytes(content)
    for call in (lambda: import_sentencepiece(path), lambda: load(path)):
        with pytest.raises(ValueError, match=r"broken\.model: these \d+ bytes are no SentencePiece model"):
            call()
    with pytest.raises(FileNotFoundError, match=r"absent\.model"):
        load(tmp_path / "absent.model")


def test_impossible_sizes_and_texts_are_errors_with_both_numbers() -> None:
    for size, problem in ((17, "17 leaves no room"), (275, r"275 is below \d+"), (9000, r"9000 cannot .* give \d+ ")):
        with pytest.raises(ValueError, match=problem):
            train_sentencepiece(TEXTS, size)
    for texts in ([], [""], ["\x00"]):
        with pytest.raises(ValueError, match="no text to train on"):
            train_sentencepiece(texts, 300)
    with pytest.raises(ValueError, match="lone surrogate"):
        train_sentencepiece(["a\ud800"], 300)


def test_a_document_with_a_character_the_trainer_cannot_read_still_counts() -> None:
    odd = train_sentencepiece([text + "\x00▅" for text in TEXTS], 330)
    assert len(odd.encode(" the cat")) == len(train_sentencepiece(TEXTS, 330).encode(" the cat"))


def test_without_the_library_the_way_to_install_it_is_named(
    monkeypatch: pytest.MonkeyPatch, trained: SentencePieceTokenizer
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    for call in (lambda: train_sentencepiece(TEXTS, 330), lambda: import_sentencepiece(trained.model)):
        with pytest.raises(ValueError, match=r'pip install "moonlet\[sentencepiece\]"'):
            call()


@given(text=known)
def test_a_model_that_calls_itself_lossless_is(tokenizer: SentencePieceTokenizer, text: str) -> None:
    text = text.replace("▁", "")
    if tokenizer.lossless:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_models_trained_here_lose_nothing_and_those_that_normalise_do(trained: SentencePieceTokenizer) -> None:
    assert trained.lossless
    as_it_stands = {**FOREIGN["as it stands"], "add_dummy_prefix": False}
    assert import_sentencepiece(foreign(**as_it_stands)).lossless
    for change in (
        {"normalization_rule_name": "nfkc"},
        {"remove_extra_whitespaces": True},
        {"add_dummy_prefix": True},
        {"byte_fallback": False, "vocab_size": 80},
    ):
        assert not import_sentencepiece(foreign(**{**as_it_stands, **change})).lossless, change
