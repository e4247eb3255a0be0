"""Tokenizers behind one small protocol: text -> ids -> text, exactly.

Names are resolved on first use, so that importing the room costs nothing and the `tokenizers` library is loaded only
by what needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moonlet.text.bpe import BPETokenizer, train_bpe
    from moonlet.text.byte import ByteTokenizer
    from moonlet.text.folder import load
    from moonlet.text.tokenizer import Tokenizer

__all__ = ["BPETokenizer", "ByteTokenizer", "Tokenizer", "load", "train_bpe"]

_HOME = {
    "BPETokenizer": "moonlet.text.bpe",
    "ByteTokenizer": "moonlet.text.byte",
    "Tokenizer": "moonlet.text.tokenizer",
    "load": "moonlet.text.folder",
    "train_bpe": "moonlet.text.bpe",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
