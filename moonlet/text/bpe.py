"""Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909; on bytes: GPT-2).

Text is cut into words by a regular expression, each word is a string of bytes, and the learned merges (a, b) -> ab are
applied in the order in which they were learned; training merges, at each step, the pair that is most frequent. The cut
is that of Kimi and GPT-4o without their splits for case and script: a word takes one space or mark before it and its
's, 't, ... behind it; numbers come in groups of up to three digits; runs of punctuation and of line ends stay together.

The `tokenizers` library does the training and the encoding; the content (merges, specials, pattern) is ours, so that
the same content gives the same hash whatever the version of the library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from moonlet.text.pipeline import bpe_pipeline, byte_characters, save_folder
from moonlet.text.tokenizer import (
    BOS,
    EOS,
    N_SPECIALS,
    PAD,
    BytesTokenizer,
    TokenBytes,
    Unreachable,
    default_specials,
    hash_content,
    utf8,
)

SPLIT = (
    r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
SMALLEST = N_SPECIALS + 256


class BPETokenizer(BytesTokenizer):
    """A byte-level BPE. See `moonlet.text.tokenizer.Tokenizer` for the methods, `train_bpe` to make one.

    Ids: the specials, then the 256 bytes in order, then each new token in the order of the merges. Two merges may make
    one token ("a" + "bc", "ab" + "c"), so there can be fewer tokens than merges.

    Args:
        merges: pairs of tokens in the characters of `byte_characters`, in the order in which they apply.
        pattern: regular expression (Oniguruma syntax, for its \\p classes) of one word.

    Raises:
        ValueError: a merge joins a token that does not exist yet, or spells a special token.
    """

    kind = "bpe"
    lossless = True
    unk_id: int | None = None

    def __init__(self, merges: Sequence[tuple[str, str]], pattern: str = SPLIT) -> None:
        self.specials = default_specials()
        self.bos_id, self.eos_id, self.pad_id = (self.specials[name] for name in (BOS, EOS, PAD))
        self.merges = list(merges)
        self.pattern = pattern
        characters = byte_characters()
        to_byte = {character: bytes([byte]) for byte, character in enumerate(characters)}
        known = dict(to_byte)
        for rank, (left, right) in enumerate(self.merges):
            token = left + right
            if left not in known or right not in known:
                raise ValueError(f"merge {rank} ({left!r}, {right!r}) joins a token that no earlier merge makes")
            # A merge that makes "[EOS]" would let plain text produce the special id.
            if token in self.specials:
                raise ValueError(f"merge {rank} ({left!r}, {right!r}) makes the special token {token!r}")
            known.setdefault(token, known[left] + known[right])
        self.vocab_size = len(self.specials) + len(known)
        self.tokens = list(known)
        self._bytes = TokenBytes([name.encode("utf-8") for name in self.specials] + list(known.values()), self.specials)
        self._plain = self._engine(encode_special_tokens=True)
        self._special: Any = None

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of `text`."""
        return self.encode_batch([text], allow_special=allow_special)[0]

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        engine = self._plain
        if allow_special:
            if self._special is None:
                self._special = self._engine(encode_special_tokens=False)
            engine = self._special
        try:
            encodings = engine.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            # The library refuses a lone surrogate without saying where; `utf8` says it.
            for text in texts:
                utf8(text)
            raise
        return [encoding.ids for encoding in encodings]

    def save(self, folder: Path) -> None:
        """Write the tokenizer folder."""
        save_folder(self, folder, self.pipeline())

    def pipeline(self) -> dict[str, Any]:
        """The content of tokenizer.json."""
        return bpe_pipeline(self.specials, self.tokens, self.merges, self.pattern)

    def content_hash(self) -> str:
        """sha256 of kind, specials, pattern and merges: together they decide the ids."""
        return hash_content(
            {
                "kind": self.kind,
                "specials": self.specials,
                "pattern": self.pattern,
                "merges": [list(m) for m in self.merges],
            }
        )

    def _engine(self, *, encode_special_tokens: bool) -> Any:
        """The library's tokenizer. Two are kept because its switch for specials is global state, not an argument."""
        from tokenizers import Tokenizer as Engine

        engine = Engine.from_str(json.dumps(self.pipeline()))
        engine.encode_special_tokens = encode_special_tokens
        return engine


def train_bpe(texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2) -> BPETokenizer:
    """Learn a byte-level BPE from `texts` (streamed; only word counts are kept).

    Deterministic: the same texts in the same order give the same merges, on any number of threads.

    Args:
        texts: the documents.
        vocab_size: ids wanted, specials included; at least 272 (16 specials and 256 bytes).
        min_frequency: a pair seen less often is not merged.

    Raises:
        ValueError: `vocab_size` is below 272, or (`Unreachable`) the texts hold too few distinct pairs to reach it.
    """
    if vocab_size < SMALLEST:
        raise ValueError(f"vocab_size {vocab_size} is below {SMALLEST}, the {N_SPECIALS} special tokens and 256 bytes")
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Engine

    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # Specials stay out of the trainer: a merge that spells "[EOS]" must not fall together with the special token.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - N_SPECIALS,
        min_frequency=min_frequency,
        initial_alphabet=byte_characters(),
        show_progress=False,
    )
    engine.train_from_iterator(_checked(texts), trainer)
    tokenizer = BPETokenizer(_learned_merges(engine))
    if tokenizer.vocab_size < vocab_size:
        raise Unreachable(vocab_size, tokenizer.vocab_size)
    return tokenizer


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        utf8(text)
        yield text


def _learned_merges(engine: Any) -> list[tuple[str, str]]:
    merges = json.loads(engine.to_str())["model"]["merges"]
    # Older versions of the library write "a b"; no token holds a space, byte 0x20 being shown as another character.
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return [(left, right) for left, right in pairs]
