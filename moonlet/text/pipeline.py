"""The two files of a tokenizer folder, which Hugging Face's AutoTokenizer reads.

`tokenizer.json` holds the whole pipeline in the format of the `tokenizers` library: split, bytes, merges, decoder.
`tokenizer_config.json` names the special tokens for Hugging Face and holds, under "moonlet", kind and content hash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moonlet.text.atomic import atomic_write
from moonlet.text.tokenizer import BOS, EOS, PAD, Tokenizer

PIPELINE_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"


def byte_characters() -> list[str]:
    """Byte -> the visible character that stands for it in tokenizer.json (GPT-2's convention).

    Printable Latin-1 stands for itself; the 68 others, in order, for U+0100, U+0101, ...
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def tokenizer_json(
    specials: Mapping[str, int], tokens: Sequence[str], merges: Sequence[tuple[str, str]], pattern: str | None
) -> dict[str, Any]:
    """The content of tokenizer.json.

    Args:
        specials: name -> id, ids 0, 1, 2, ... in order.
        tokens: ordinary tokens in id order, in the characters of `byte_characters`; empty means the 256 bytes alone.
        merges: pairs in order.
        pattern: regular expression of one word, or None when the text is one word.
    """
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    names = [*specials, *(tokens or byte_characters())]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": name, **added} for name, index in specials.items()],
        "normalizer": None,
        "pre_tokenizer": byte_level if pattern is None else {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {name: index for index, name in enumerate(names)},
            "merges": [list(merge) for merge in merges],
        },
    }


def save_folder(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    tokens: Sequence[str],
    merges: Sequence[tuple[str, str]],
    pattern: str | None,
) -> None:
    """Write both files into `folder`, each atomically; the config, which holds the hash of the content, last."""
    pipeline = tokenizer_json(tokenizer.specials, tokens, merges, pattern)
    reserved = [name for name in tokenizer.specials if name not in (BOS, EOS, PAD)]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": reserved,
        # Hugging Face's clean-up deletes the space before punctuation, which is not what was encoded.
        "clean_up_tokenization_spaces": False,
        "moonlet": {"kind": tokenizer.kind, "content_hash": tokenizer.content_hash()},
    }
    folder = Path(folder)
    atomic_write(folder / PIPELINE_FILE, json.dumps(pipeline, ensure_ascii=False, indent=1) + "\n")
    atomic_write(folder / CONFIG_FILE, json.dumps(config, ensure_ascii=False, indent=2) + "\n")
