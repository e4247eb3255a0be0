"""The byte tokenizer: id = N_SPECIALS + byte of the UTF-8 text. No training, no unknowns, no surprises.

The shortest member of the protocol, and the one to test a model with: bits per token are bits per byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moonlet.text.pipeline import bpe_pipeline, save_folder
from moonlet.text.tokenizer import (
    BOS,
    EOS,
    PAD,
    BytesTokenizer,
    SpecialFinder,
    TokenBytes,
    default_specials,
    hash_content,
    utf8,
)


class ByteTokenizer(BytesTokenizer):
    """256 bytes and the special tokens: 272 ids. See `moonlet.text.tokenizer.Tokenizer` for the methods."""

    kind = "byte"
    lossless = True
    unk_id: int | None = None

    def __init__(self) -> None:
        self.specials = default_specials()
        self.vocab_size = len(self.specials) + 256
        self.bos_id, self.eos_id, self.pad_id = (self.specials[name] for name in (BOS, EOS, PAD))
        self._offset = len(self.specials)
        names = [name.encode("utf-8") for name in self.specials]
        self._bytes = TokenBytes(names + [bytes([byte]) for byte in range(256)], self.specials)
        self._find_specials = SpecialFinder(self.specials)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of `text`, one per UTF-8 byte."""
        return self._find_specials.encode(text, self._encode) if allow_special else self._encode(text)

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text, allow_special=allow_special) for text in texts]

    def save(self, folder: Path) -> None:
        """Write the tokenizer folder: for Hugging Face this is a byte-level BPE without merges."""
        save_folder(self, folder, self.pipeline())

    def pipeline(self) -> dict[str, Any]:
        """The content of tokenizer.json."""
        return bpe_pipeline(self.specials, [], [], None)

    def content_hash(self) -> str:
        """sha256 of kind and specials: nothing else decides the ids."""
        return hash_content({"kind": self.kind, "specials": self.specials})

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = (np.frombuffer(utf8(text), dtype=np.uint8).astype(np.int64) + self._offset).tolist()
        return ids
