"""Pieces of text are whole characters, join to the whole text, and never show a stop string or its beginning."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moonlet.generate.text import TextStream
from moonlet.text import ByteTokenizer, train_word

BYTES = ByteTokenizer()


def pieces(ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(BYTES, stop)
    return [*(stream.push(i) for i in ids), stream.finish()], stream


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_pieces_join_to_the_text_and_hold_no_broken_character(text: str) -> None:
    parts, _ = pieces(BYTES.encode(text))
    assert "".join(parts) == text
    assert all("�" not in part for part in parts) or "�" in text


@given(st.lists(st.integers(0, 271)))
def test_any_tokens_give_the_text_of_the_tokenizer(ids: list[int]) -> None:
    assert "".join(pieces(ids)[0]) == BYTES.decode(ids, skip_special=True)


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string_to_be_completed(text: str, stop: list[str]) -> None:
    parts, stream = pieces(BYTES.encode(text), tuple(stop))
    # The law: letter by letter, cut as soon as a stop string is there.
    want = text
    for n in range(len(text) + 1):
        found = [text[:n].find(s) for s in stop if s in text[:n]]
        if found:
            want = text[: min(found)]
            break
    assert "".join(parts) == want
    assert stream.stopped == (want != text)


def test_what_could_begin_a_stop_string_is_held_back_until_it_cannot() -> None:
    parts, stream = pieces(BYTES.encode("a<b<|x"), ("<|end|>",))
    assert parts == ["a", "", "<b", "", "", "<|x", ""]
    assert not stream.stopped


def test_a_held_beginning_is_released_at_the_end() -> None:
    assert pieces(BYTES.encode("a<|en"), ("<|end|>",))[0][-1] == "<|en"


def test_words_are_joined_as_the_tokenizer_decodes_them_and_go_on_after_the_prompt() -> None:
    words = train_word(['One day, Lily said, "I don\'t know!" and I saw Lily.'], 100)
    prompt, more = words.encode("One day, Lily"), words.encode('said, "I don\'t know!"')
    stream = TextStream(words, (), [words.bos_id, *prompt])
    assert "".join([*map(stream.push, more), stream.finish()]) == ' said, "I don\'t know!"'
    stream = TextStream(words, ("don't",), [words.bos_id, *prompt])
    assert "".join([*map(stream.push, more), stream.finish()]) == ' said, "I '
    assert stream.stopped
