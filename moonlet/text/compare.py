"""Tokenizers side by side: how short they make a text, what they break and lose, and how fast they are."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from moonlet.text.tokenizer import Tokenizer, Unreachable
from moonlet.text.train import train_tokenizer

_WORD = re.compile(r"\w+")
_ENOUGH = 0.2  # seconds a speed is measured for at least


@dataclass(frozen=True)
class Measured:
    """What a tokenizer does to a text it was not trained on."""

    kind: str
    asked: int  # ids asked for
    reached: int  # ids there are
    bytes_per_token: float
    words_split: float  # share of the words that become more than one token
    unknown: float  # share of the tokens that are the unknown one
    encode_rate: float  # millions of bytes a second
    decode_rate: float
    exact: bool  # whether every text came back as it was


def compare(kind: str, vocab_size: int, train: Callable[[], Iterable[str]], held_out: Sequence[str]) -> Measured:
    """Train a tokenizer and measure it. A size the texts cannot fill becomes the largest they can.

    Args:
        kind: see `train_tokenizer`.
        vocab_size: ids wanted.
        train: gives the training texts, each time anew.
        held_out: texts to measure on.

    Raises:
        ValueError: nothing to measure on; see `train_tokenizer`.
    """
    try:
        tokenizer = train_tokenizer(kind, train(), vocab_size)
    except Unreachable as error:
        tokenizer = train_tokenizer(kind, train(), error.most)
    return measure(tokenizer, held_out, vocab_size)


def measure(tokenizer: Tokenizer, texts: Sequence[str], asked: int = 0) -> Measured:
    """Measure a tokenizer on texts; speeds are those of `encode_batch` and of `decode`, text by text.

    Raises:
        ValueError: there is no text.
    """
    size = sum(len(text.encode("utf-8")) for text in texts)
    if not size:
        raise ValueError("there is no text to measure on; give a longer file, or a second one with --valid")
    ids = tokenizer.encode_batch(texts)
    words, broken = 0, 0
    for text, tokens in zip(texts, ids, strict=True):
        found, split = _split_words(tokenizer, text, tokens)
        words, broken = words + found, broken + split
    tokens_in_all = sum(map(len, ids))
    unknown = sum(tokens.count(tokenizer.unk_id) for tokens in ids if tokenizer.unk_id is not None)
    return Measured(
        tokenizer.kind,
        asked,
        tokenizer.vocab_size,
        size / tokens_in_all,
        broken / max(1, words),
        unknown / tokens_in_all,
        _rate(size, lambda: tokenizer.encode_batch(texts)),
        _rate(size, lambda: [tokenizer.decode(tokens) for tokens in ids]),
        all(tokenizer.decode(tokens) == text for tokens, text in zip(ids, texts, strict=True)),
    )


def _split_words(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> tuple[int, int]:
    """Words of a text, and how many of them a token ends inside of."""
    spans = np.array([match.span() for match in _WORD.finditer(text)], dtype=np.int64).reshape(-1, 2)
    if tokenizer.kind == "word":
        return len(spans), 0
    ends = np.cumsum([len(tokenizer.piece(i)) for i in ids], dtype=np.int64)
    size = len(text.encode("utf-8"))
    if not len(spans) or ends[-1] != size:
        # A model that changes the text has no places in it: each word is asked for by itself, behind another.
        alone = len(tokenizer.encode("a"))
        split = sum(len(tokenizer.encode(f"a {text[a:b]}")) > alone + 1 for a, b in spans)
        return len(spans), split
    cut = np.zeros(size + 1, dtype=np.int64)
    cut[ends] = 1
    before = np.concatenate([[0], np.cumsum(cut)])  # before[n]: ends at places below n
    place = np.concatenate([[0], np.cumsum([len(character.encode("utf-8")) for character in text])])
    first, last = place[spans[:, 0]], place[spans[:, 1]]
    return len(spans), int(np.sum(before[last] > before[first + 1]))


def _rate(size: int, run: Callable[[], object]) -> float:
    """Millions of bytes a second, the best of some runs."""
    best, spent = float("inf"), 0.0
    while spent < _ENOUGH:
        start = time.perf_counter()
        run()
        took = time.perf_counter() - start
        best, spent = min(best, took), spent + max(took, 1e-6)
    return size / best / 1e6
