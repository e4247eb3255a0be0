"""The two files of a tokenizer folder, which Hugging Face's AutoTokenizer reads.

`tokenizer.json` holds the whole pipeline in the format of the `tokenizers` library: split, bytes, merges, decoder.
`tokenizer_config.json` names the special tokens for Hugging Face and holds, under "moonlet", kind and content hash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moonlet.config import json_file
from moonlet.text.atomic import atomic_write
from moonlet.text.tokenizer import Tokenizer

PIPELINE_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"


def byte_characters() -> list[str]:
    """Byte -> the visible character that stands for it in tokenizer.json (GPT-2's convention).

    Printable Latin-1 stands for itself; the 68 others, in order, for U+0100, U+0101, ...
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def added_tokens(specials: Mapping[str, int]) -> list[dict[str, Any]]:
    """The section of tokenizer.json that names the special tokens: found as they stand, never inside ordinary text."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": index, "content": name, **flags} for name, index in specials.items()]


def pipeline_of(specials: Mapping[str, int], **sections: Any) -> dict[str, Any]:
    """A tokenizer.json: the sections given, and nothing in the others."""
    empty = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder", "model"))
    start = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens(specials)}
    return {**start, **empty, **sections}


def bpe_pipeline(
    specials: Mapping[str, int], tokens: Sequence[str], merges: Sequence[tuple[str, str]], pattern: str | None
) -> dict[str, Any]:
    """The content of tokenizer.json for a byte-level BPE.

    Args:
        specials: name -> id, ids 0, 1, 2, ... in order.
        tokens: ordinary tokens in id order, in the characters of `byte_characters`; empty means the 256 bytes alone.
        merges: pairs in order.
        pattern: regular expression of one word, or None when the text is one word.
    """
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    names = [*specials, *(tokens or byte_characters())]
    return pipeline_of(
        specials,
        pre_tokenizer=byte_level if pattern is None else {"type": "Sequence", "pretokenizers": [split, byte_level]},
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        model=bpe_model({name: index for index, name in enumerate(names)}, merges),
    )


def bpe_model(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], **options: Any) -> dict[str, Any]:
    """The section "model" of a BPE, every switch of the library written out."""
    plain = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return {**plain, **options, "vocab": dict(vocab), "merges": [list(merge) for merge in merges]}


def save_folder(
    tokenizer: Tokenizer,
    folder: Path,
    pipeline: Mapping[str, Any] | None,
    about: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write both files into `folder`, each atomically; the config, which holds the hash of the content, last.

    Args:
        pipeline: the content of tokenizer.json; None: there is none, and one that lies there is removed.
        about: what else decides the tokenizer, kept beside kind and hash.
        config: further entries of tokenizer_config.json, and others in place of those written here.
    """
    names = {index: name for name, index in tokenizer.specials.items()}
    bos, eos, pad = (names[index] for index in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id))
    written = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "additional_special_tokens": [name for name in tokenizer.specials if name not in (bos, eos, pad)],
        # Hugging Face's clean-up deletes the space before punctuation, which is not what was encoded.
        "clean_up_tokenization_spaces": False,
        **(config or {}),
        "moonlet": {"kind": tokenizer.kind, "content_hash": tokenizer.content_hash(), **(about or {})},
    }
    folder = Path(folder)
    if pipeline is not None:
        atomic_write(folder / PIPELINE_FILE, json.dumps(pipeline, ensure_ascii=False, indent=1) + "\n")
    else:
        (folder / PIPELINE_FILE).unlink(missing_ok=True)
    atomic_write(folder / CONFIG_FILE, json.dumps(written, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file of a tokenizer folder holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON object; names the file, and where it breaks off.
    """
    try:
        return json_file.read_json(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file; a tokenizer folder holds {PIPELINE_FILE} and {CONFIG_FILE}"
        ) from None
