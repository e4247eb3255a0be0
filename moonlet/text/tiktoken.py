"""Kimi's tokenizer: byte-level byte-pair encoding from tiktoken's rank file, with 256 special tokens behind the ranks.

    text -> slices -> words -> bytes -> joined by rank -> ids

`tiktoken_split.py` has the slices and words, `tiktoken_ranks.py` the ranks and how they come to be merges, and
`tiktoken_slots.py` the special tokens. The work is done by the `tokenizers` library from the very pipeline that
`save` writes to tokenizer.json, so Hugging Face's fast tokenizer has these ids by construction; that they are also
those of the `tiktoken` engine, which is not needed here, is what the tests are for.

One thing tokenizer.json cannot say: special tokens are looked for after a text was cut into slices, and there before.
It matters for a special token within a run of more than 25,000 characters without a space, or across a cut.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from moonlet.text.atomic import atomic_write
from moonlet.text.pipeline import CONFIG_FILE, bpe_model, byte_characters, pipeline_of, read_json, save_folder
from moonlet.text.tiktoken_ranks import MODEL_FILE, merges_of, read_ranks, write_ranks
from moonlet.text.tiktoken_slots import Slots, read_slots
from moonlet.text.tiktoken_split import PATTERN, slices, splits
from moonlet.text.tokenizer import BytesTokenizer, SpecialFinder, TokenBytes, hash_content, utf8

SPECIALS_FILE = "special_tokens_map.json"


class TiktokenTokenizer(BytesTokenizer):
    """Kimi's tokenizer. See `moonlet.text.tokenizer.Tokenizer` for the methods, `import_tiktoken` to read one.

    Ids: a token's rank, then the special tokens. [UNK] is one of these and never comes out of a text. Decoding that
    skips special tokens leaves those that the config does not call special.

    Args:
        tokens: the bytes of rank 0, 1, 2, ..., all 256 single bytes among them.
        slots: the special tokens; None: those that every published model has, and reserved ones.
        model: the rank file that `tokens` were read from, to be saved as it was; None: it is written anew.

    Raises:
        ValueError: a token spells a special one, so that their ids could not be told apart.
    """

    kind = "tiktoken"
    lossless = True
    unk_id: int | None = None
    pattern = PATTERN

    def __init__(self, tokens: Sequence[bytes], slots: Slots | None = None, model: bytes | None = None) -> None:
        self.tokens = list(tokens)
        self.slots = slots or read_slots(len(self.tokens))
        self.model = write_ranks(self.tokens) if model is None else model
        self.specials = dict(self.slots.names)
        self.bos_id, self.eos_id, self.pad_id = (
            self.specials[name] for name in (self.slots.bos, self.slots.eos, self.slots.pad)
        )
        self.vocab_size = len(self.tokens) + len(self.specials)
        names = {name.encode("utf-8"): name for name in self.specials}
        for rank, token in enumerate(self.tokens):
            if token in names:
                raise ValueError(f"rank {rank} is {names[token]!r}, the name of a special token; one must be renamed")
        skipped = {name: index for name, index in self.specials.items() if index not in self.slots.shown}
        self._bytes = TokenBytes([*self.tokens, *names], skipped)
        # Where one name begins another, the longer one is meant.
        longest_first = sorted(self.specials.items(), key=lambda item: -len(item[0]))
        self._find_specials = SpecialFinder(dict(longest_first))

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of `text`."""
        return self.encode_batch([text], allow_special=allow_special)[0]

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        if not allow_special:
            return self._encode(texts)
        for text in texts:
            utf8(text)
        return [[i for piece in slices(text) for i in self._find_specials.encode(piece, self._one)] for text in texts]

    def save(self, folder: Path) -> None:
        """Write tiktoken.model as it was read, and the fast tokenizer of Hugging Face: tokenizer.json,
        special_tokens_map.json and tokenizer_config.json."""
        atomic_write(Path(folder) / MODEL_FILE, self.model)
        config = self.slots.config()
        roles = {**self.slots.roles(), "additional_special_tokens": config["additional_special_tokens"]}
        atomic_write(Path(folder) / SPECIALS_FILE, json.dumps(roles, ensure_ascii=False, indent=2) + "\n")
        save_folder(self, folder, self.pipeline(), config=config)

    @cached_property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """The pairs that are joined, in their order. Worked out when first asked for: a second for 160,000 tokens."""
        return merges_of(self.tokens)

    def pipeline(self) -> dict[str, Any]:
        """The content of tokenizer.json."""
        visible = str.maketrans(dict(enumerate(byte_characters())))

        def shown(token: bytes) -> str:
            return token.decode("latin-1").translate(visible)

        vocab = {shown(token): rank for rank, token in enumerate(self.tokens)}
        merges = [(shown(left), shown(right)) for left, right in self.merges]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        pipeline = pipeline_of(
            self.specials,
            pre_tokenizer={"type": "Sequence", "pretokenizers": [*splits(), byte_level]},
            decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            # Special tokens are no part of this vocabulary, where a word of a text might meet one.
            model=bpe_model(vocab, merges, ignore_merges=True),
        )
        for token in pipeline["added_tokens"]:
            token["special"] = token["id"] not in self.slots.shown
        return pipeline

    def content_hash(self) -> str:
        """sha256 of kind, specials, pattern and ranks: together they decide the ids."""
        ranks = hashlib.sha256(write_ranks(self.tokens)).hexdigest()
        return hash_content({"kind": self.kind, "specials": self.specials, "pattern": self.pattern, "ranks": ranks})

    @cached_property
    def _engine(self) -> Any:
        """The library's tokenizer. It knows no special tokens, so no text can give one."""
        from tokenizers import Tokenizer as Engine

        return Engine.from_str(json.dumps({**self.pipeline(), "added_tokens": []}))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            encodings = self._engine.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            # The library refuses a lone surrogate without saying where; `utf8` says it.
            for text in texts:
                utf8(text)
            raise
        return [encoding.ids for encoding in encodings]

    def _one(self, text: str) -> list[int]:
        return self._encode([text])[0] if text else []


def import_tiktoken(path: Path | str, config: Mapping[str, Any] | None = None) -> TiktokenTokenizer:
    """Read Kimi's tokenizer as it is published.

    Args:
        path: the rank file, tiktoken.model.
        config: what tokenizer_config.json says; None: that file beside the rank file, or where there is none the names
            that every published model has.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is malformed; names the file, and the line or entry.
    """
    path = Path(path)
    beside = path.with_name(CONFIG_FILE)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a rank file, e.g. {MODEL_FILE}")
    if config is None and beside.is_file():
        config = read_json(beside)
    model = path.read_bytes()
    try:
        tokens = read_ranks(model)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from None
    return _with_slots(tokens, config, str(beside), model)


def from_pipeline(
    pipeline: Mapping[str, Any], path: Path, config: Mapping[str, Any], config_path: Path
) -> TiktokenTokenizer:
    """The tokenizer whose `pipeline` was saved by somebody who left tiktoken.model behind, as Hugging Face does.

    Args:
        pipeline: the content of tokenizer.json.
        path: where that was read.
        config: the content of tokenizer_config.json, for the roles of the special tokens.
        config_path: where that was read.

    Raises:
        ValueError: the vocabulary is not that of a rank file, or the config does not go with it.
    """
    to_byte = {character: byte for byte, character in enumerate(byte_characters())}
    try:
        vocab = pipeline["model"]["vocab"]
        tokens = [bytes(to_byte[c] for c in token) for token in sorted(vocab, key=vocab.__getitem__)]
        tokens = read_ranks(write_ranks(tokens))
        specials = {str(token["id"]): token for token in pipeline["added_tokens"]}
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(
            f"{path}: no BPE model with a vocabulary of bytes and what they join to; not a tokenizer saved by moonlet"
        ) from None
    return _with_slots(tokens, {**config, "added_tokens_decoder": specials}, f"{path} with {config_path.name}")


def _with_slots(
    tokens: Sequence[bytes], config: Mapping[str, Any] | None, source: str, model: bytes | None = None
) -> TiktokenTokenizer:
    """The tokenizer of `tokens`; what is wrong with its special tokens is wrong in `source`."""
    try:
        return TiktokenTokenizer(tokens, read_slots(len(tokens), config), model)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
