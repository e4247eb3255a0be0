"""One function that trains a tokenizer of any kind."""

from __future__ import annotations

from collections.abc import Iterable

from moonlet.text.bpe import train_bpe
from moonlet.text.byte import ByteTokenizer
from moonlet.text.sentencepiece import train_sentencepiece
from moonlet.text.tokenizer import Tokenizer
from moonlet.text.word import train_word

KINDS = ("byte", "bpe", "word", "sentencepiece")


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a tokenizer.

    Args:
        kind: "byte" (which reads nothing and has 272 ids), "bpe", "word" or "sentencepiece".
        texts: the documents.
        vocab_size: ids wanted, specials included; "word" may find fewer words.

    Raises:
        ValueError: an unknown kind, or what the kind's own function raises.
    """
    check_kind(kind)
    if kind == "byte":
        return ByteTokenizer()
    if kind == "bpe":
        return train_bpe(texts, vocab_size)
    return train_word(texts, vocab_size) if kind == "word" else train_sentencepiece(texts, vocab_size)


def check_kind(kind: str) -> None:
    """Raise ValueError unless `kind` is one of KINDS."""
    if kind not in KINDS:
        raise ValueError(f"tokenizer kind {kind!r} is unknown; there are {', '.join(KINDS)}")
