"""What every tokenizer is: a map between text and small integers.

    decode(encode(x)) == x        for every string x of Unicode scalar values, where the kind is lossless

The lossless kinds work on UTF-8 bytes, so nothing is ever unknown. Those trained here give the first `N_SPECIALS` ids
to special tokens, whatever the kind and the vocabulary size: [BOS] is 0, [EOS] is 1, [PAD] is 2, the rest is kept free
for chat templates (as Kimi keeps 256 slots). A config may therefore name these ids without knowing the tokenizer, and a
vocabulary may grow without moving them. An imported one keeps the ids it has.

Text is data: the characters "[EOS]" inside a document are five ordinary characters. Only `allow_special=True`, which is
for templates written by us and never for a user's text, turns them into the special id.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from moonlet.text.detokenizer import BytesDetokenizer, Detokenizer

BOS, EOS, PAD = "[BOS]", "[EOS]", "[PAD]"
N_SPECIALS = 16


def default_specials() -> dict[str, int]:
    """The special tokens by name: [BOS] 0, [EOS] 1, [PAD] 2, then reserved slots named as Kimi names its own."""
    names = [BOS, EOS, PAD]
    names += [f"<|reserved_token_{slot}|>" for slot in range(len(names), N_SPECIALS)]
    return {name: index for index, name in enumerate(names)}


@runtime_checkable
class Tokenizer(Protocol):
    """The protocol. `moonlet.text.load(folder)` returns one."""

    kind: str
    """"byte", "bpe", "word", "sentencepiece" or "tiktoken"."""
    lossless: bool
    """Whether decode(encode(x)) == x for every x (in SentencePiece: every x without U+2581, its own sign for a space).
    If not, count bytes on the text itself, never on its decoding."""
    vocab_size: int
    """Number of ids, specials included: every id is in [0, vocab_size)."""
    specials: dict[str, int]
    """Name -> id of each special token."""
    bos_id: int
    eos_id: int
    pad_id: int
    unk_id: int | None
    """The id of what the vocabulary lacks, an ordinary id with text of its own; None where nothing is unknown. A
    sampler that shall never show it leaves this id out."""

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of `text`; no [BOS] or [EOS] is added.

        Raises:
            ValueError: `text` holds a lone surrogate, which no UTF-8 can carry.
        """
        ...

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """`encode` of each text, on all cores where the kind can."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of `ids`. Bytes that are no UTF-8 (a character cut in two) become U+FFFD, as in Hugging Face."""
        ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of the text of `ids`, a special token being its name; exact for the lossless kinds.

        Raises:
            ValueError: an id is outside [0, vocab_size).
        """
        ...

    def piece(self, index: int) -> bytes:
        """What the vocabulary holds for one id, whatever the text around it: to look at, not to join."""
        ...

    def detokenizer(self, before: Sequence[int] = (), *, skip_special: bool = False) -> Detokenizer:
        """Decode ids one at a time, as a continuation of `before`, whose own text is not given again."""
        ...

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which Hugging Face's AutoTokenizer loads, atomically; and the
        model file, where the kind has one of its own."""
        ...

    def content_hash(self) -> str:
        """sha256 (hex) of all that decides the ids. Survives save and load; differs when any text's ids could."""
        ...


class Unreachable(ValueError):
    """A vocabulary size that the texts cannot fill; `most` is the largest they can."""

    def __init__(self, vocab_size: int, most: int) -> None:
        super().__init__(
            f"vocab_size {vocab_size} cannot be reached: these texts give {most} tokens at most; ask for {most} or "
            "fewer, or give more text"
        )
        self.most = most


class SpecialFinder:
    """Finds the names of special tokens in templates: shared by the kinds whose encoder does not know them."""

    def __init__(self, specials: Mapping[str, int]) -> None:
        self._specials = specials
        self._pattern = re.compile("(" + "|".join(map(re.escape, specials)) + ")")

    def encode(self, text: str, plain: Callable[[str], list[int]]) -> list[int]:
        """Ids of `text`, the ids of special tokens where their names stand, and `plain` of what lies between."""
        ids: list[int] = []
        for piece in self._pattern.split(text):
            ids += [self._specials[piece]] if piece in self._specials else plain(piece)
        return ids


class TokenBytes:
    """The bytes of every id, and the way back from ids to text: shared by all kinds that work on bytes.

    Args:
        table: bytes of id 0, 1, 2, ... (a special token: its name in UTF-8).
        specials: name -> id.
    """

    def __init__(self, table: Sequence[bytes], specials: Mapping[str, int]) -> None:
        self._table = list(table)
        self._special_ids = frozenset(specials.values())

    def join(self, ids: Sequence[int]) -> bytes:
        """The bytes of `ids`, one after another."""
        # A negative id would silently index from the end, so the range is checked before the table is used.
        if len(ids) and not (min(ids) >= 0 and max(ids) < len(self._table)):
            bad = next(i for i in ids if not 0 <= i < len(self._table))
            raise ValueError(f"token id {bad} is outside the vocabulary, 0..{len(self._table) - 1}")
        return b"".join([self._table[i] for i in ids])

    def text(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """The text of `ids`."""
        if skip_special:
            ids = [i for i in ids if i not in self._special_ids]
        return self.join(ids).decode("utf-8", errors="replace")

    def detokenizer(self, *, skip_special: bool) -> Detokenizer:
        """`text`, an id at a time."""
        return BytesDetokenizer(self.join, self._special_ids if skip_special else frozenset())


class BytesTokenizer:
    """The way back to text of a tokenizer whose ids are bytes, whatever stands beside them."""

    _bytes: TokenBytes

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of `ids`; broken UTF-8 becomes U+FFFD."""
        return self._bytes.text(ids, skip_special=skip_special)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The exact bytes of `ids`."""
        return self._bytes.join(ids)

    def piece(self, index: int) -> bytes:
        """The bytes of one id."""
        return self._bytes.join([index])

    def detokenizer(self, before: Sequence[int] = (), *, skip_special: bool = False) -> Detokenizer:
        """Decode ids one at a time; their bytes do not depend on `before`."""
        return self._bytes.detokenizer(skip_special=skip_special)


def utf8(text: str) -> bytes:
    """`text` as UTF-8, or a ValueError that says which character has no UTF-8."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text holds a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which is not "
            f"valid Unicode text; read the file with the right encoding, or drop it with text.encode('utf-8', 'ignore')"
        ) from None


def hash_content(content: Mapping[str, object]) -> str:
    """sha256 (hex) over the canonical JSON of `content`: sorted keys, no spaces, ASCII."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
