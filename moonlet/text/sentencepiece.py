"""SentencePiece (Kudo & Richardson 2018, arXiv 1808.06226): pieces of raw text, a space being the character U+2581.

The model file is SentencePiece's own and only its library reads it, so the ids are the library's ids. A model trained
here is a byte-pair encoding with byte fallback and without any change of the text: decode(encode(x)) is x but for
U+2581 itself, which comes back as a space; with that one exception it is lossless. An imported model may normalise as
it likes (unify characters, drop spaces), and then it is not: `lossless` says what was found on trying.

The library is the extra `sentencepiece`.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from moonlet.text.atomic import atomic_write
from moonlet.text.detokenizer import BytesDetokenizer, Detokenizer
from moonlet.text.pipeline import save_folder
from moonlet.text.sentencepiece_pipeline import SPACE, agreement, sentencepiece_pipeline
from moonlet.text.tokenizer import (
    BOS,
    EOS,
    N_SPECIALS,
    PAD,
    SpecialFinder,
    TokenBytes,
    Unreachable,
    default_specials,
    hash_content,
    utf8,
)

MODEL_FILE = "tokenizer.model"
UNK = "<unk>"
SMALLEST = N_SPECIALS + 1 + 256
# The trainer skips a whole document that holds one of these: the end of a C string, and its own sign for "unknown".
_UNREADABLE = re.compile("[\x00▅]+")


class SentencePieceTokenizer:
    """A SentencePiece model. See `moonlet.text.tokenizer.Tokenizer` for the methods; `train_sentencepiece` or
    `import_sentencepiece` makes one.

    Ids are those of the model. Its control pieces are the special tokens; [BOS], [EOS] and [PAD] are its own where it
    has them and are otherwise added behind its last id. Pieces that its maker defined to be found in any text
    ("user-defined") stay ordinary pieces, as in the library.

    Args:
        model: the bytes of a SentencePiece model file.

    Raises:
        ValueError: the bytes are no such model, or the library is missing.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        self.model = model
        self.engine = _engine(model)
        self.pieces: list[str] = self.engine.id_to_piece(list(range(self.engine.get_piece_size())))
        self.specials = {piece: i for i, piece in enumerate(self.pieces) if self.engine.is_control(i)}
        self.bos_id = self._special(BOS, self.engine.bos_id())
        self.eos_id = self._special(EOS, self.engine.eos_id())
        self.pad_id = self._special(PAD, self.engine.pad_id())
        self.unk_id: int | None = self.engine.unk_id()
        self.vocab_size = max(len(self.pieces), 1 + max(self.specials.values()))
        self._special_ids = frozenset(self.specials.values())
        self._bytes = TokenBytes(self._table(), self.specials)
        self._openers = frozenset(i for i, piece in enumerate(self.pieces) if piece.startswith(SPACE))
        self._strips = self._stripped_spaces()
        self._find_specials = SpecialFinder(self.specials)
        self.lossless = self._strips == 0 and _changes_nothing(self.engine)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of `text`."""
        utf8(text)
        return self._find_specials.encode(text, self._encode) if allow_special else self._encode(text)

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        if allow_special or not texts:
            return [self.encode(text, allow_special=allow_special) for text in texts]
        for text in texts:
            utf8(text)
        ids: list[list[int]] = self.engine.encode(list(texts))
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of `ids`; broken UTF-8 becomes U+FFFD."""
        if skip_special:
            ids = [i for i in ids if i not in self._special_ids]
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of the text of `ids`."""
        return self._spelling().spell(ids)

    def piece(self, index: int) -> bytes:
        """The bytes of one id."""
        return self._bytes.join([index])

    def detokenizer(self, before: Sequence[int] = (), *, skip_special: bool = False) -> Detokenizer:
        """Decode ids one at a time; the first space of a text is dropped only where nothing stands before it."""
        spelling = self._spelling()
        spelling.spell(before)
        return BytesDetokenizer(spelling.spell, self._special_ids if skip_special else frozenset())

    def save(self, folder: Path) -> None:
        """Write tokenizer.model, tokenizer.json and tokenizer_config.json.

        With a model trained here tokenizer.json gives Hugging Face the same ids. An imported one may normalise in a way
        that has no equal there; the config says what was found, and moonlet itself reads tokenizer.model alone.
        """
        found = self.hugging_face()
        atomic_write(Path(folder) / MODEL_FILE, self.model)
        save_folder(self, folder, None if found == "none" else self.pipeline(), {"hugging_face": found})

    def hugging_face(self) -> Literal["exact", "close", "none"]:
        """Whether tokenizer.json gives the same ids, tried on every piece and every character of the first plane."""
        return agreement(self.engine, self.pipeline())

    def pipeline(self) -> dict[str, Any]:
        """The content of tokenizer.json."""
        return sentencepiece_pipeline(self.engine, self.pieces, self.specials)

    def content_hash(self) -> str:
        """sha256 of kind and model file."""
        return hash_content({"kind": self.kind, "model": hashlib.sha256(self.model).hexdigest()})

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.engine.encode(text)
        return ids

    def _special(self, name: str, index: int) -> int:
        """The id of a special token, which is added where the model has none."""
        if index >= 0:
            self.specials.setdefault(self.pieces[index], index)
            return index
        if name not in self.specials:
            if name in self.pieces:  # an ordinary piece of this spelling stays text
                name = f"<|{name.strip('[]').lower()}|>"
            self.specials[name] = max(len(self.pieces), 1 + max(self.specials.values(), default=0))
        return self.specials[name]

    def _table(self) -> list[bytes]:
        """The bytes of each id in the middle of a text; a special token's are its name."""
        table = [piece.replace(SPACE, " ").encode("utf-8") for piece in self.pieces]
        for name, index in self.specials.items():
            table[index : index + 1] = [name.encode("utf-8")]
        for index, piece in enumerate(self.pieces):
            if self.engine.is_byte(index):
                table[index] = bytes([int(piece[1:-1], 16)])
            elif self.engine.is_unknown(index):
                table[index] = self.engine.decode([index]).encode("utf-8")
        return table

    def _stripped_spaces(self) -> int:
        """How many spaces the library drops at the start of a text: 0, 1 or all of them (2)."""
        space, letter = self.engine.piece_to_id(SPACE), next(i for i in range(len(self.pieces)) if self._is_letter(i))
        if space != self.unk_id:
            text: str = self.engine.decode([space, space, letter])
            return 2 - text.count(" ")
        opener = next((i for i in sorted(self._openers) if len(self.pieces[i]) > 1), None)
        return int(opener is not None and not self.engine.decode([opener]).startswith(" "))

    def _is_letter(self, index: int) -> bool:
        """Whether the piece is ordinary text without a space (the unknown piece, which always exists, will also do)."""
        odd = self.engine.is_control(index) or self.engine.is_byte(index) or SPACE in self.pieces[index]
        return not odd and (not self.engine.is_unknown(index) or index == len(self.pieces) - 1)

    def _spelling(self) -> _Spelling:
        return _Spelling(self._bytes, self._special_ids, self._openers, self._strips)


class _Spelling:
    """The bytes of a growing list of ids, less the spaces that the library drops at the start of a text."""

    def __init__(self, table: TokenBytes, specials: frozenset[int], openers: frozenset[int], strips: int) -> None:
        self._table, self._specials, self._openers, self._strips = table, specials, openers, strips
        self._at_start = strips > 0

    def spell(self, ids: Sequence[int]) -> bytes:
        """The bytes of the next ids."""
        out: list[bytes] = []
        for done, index in enumerate(ids):
            if not self._at_start:
                return b"".join(out) + self._table.join(ids[done:])
            piece = self._table.join([index])
            if index not in self._specials:
                piece = piece[1:] if index in self._openers else piece
                self._at_start = self._strips > 1 and not piece
            out.append(piece)
        return b"".join(out)


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    """Learn a SentencePiece byte-pair encoding with byte fallback from `texts`.

    Deterministic: the same texts in the same order give the same model file. The first 16 ids are the special tokens,
    17..272 the bytes. Nothing is normalised and no space is put before a text, so the pieces spell the text exactly;
    characters too rare for a piece (0.05% of the text) are spelt in bytes.

    Args:
        texts: the documents; held in memory by the library.
        vocab_size: ids wanted, specials and bytes included.

    Raises:
        ValueError: the library is missing, a text holds a lone surrogate, `vocab_size` is below the number of
            characters, or (`Unreachable`) the texts hold too few pieces to reach it.
    """
    library = _library()
    if vocab_size <= SMALLEST:
        raise ValueError(
            f"vocab_size {vocab_size} leaves no room for pieces: {SMALLEST} ids are special tokens and bytes"
        )
    model = io.BytesIO()
    try:
        library.SentencePieceTrainer.train(
            sentence_iterator=_readable(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            bos_id=0,
            eos_id=1,
            pad_id=2,
            unk_id=N_SPECIALS,
            bos_piece=BOS,
            eos_piece=EOS,
            pad_piece=PAD,
            unk_piece=UNK,
            control_symbols=list(default_specials())[3:],
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            # Documents, not lines: a line end is a character like any other. Longer ones than this would be skipped.
            max_sentence_length=2**30,
            # The number is written into the model, which must not depend on the machine.
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _reason(str(error), vocab_size) from None
    return SentencePieceTokenizer(model.getvalue())


def import_sentencepiece(source: Path | str | bytes) -> SentencePieceTokenizer:
    """Take over any SentencePiece model (unigram or BPE), from its file or its bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no SentencePiece model; the library is missing.
    """
    if isinstance(source, bytes):
        return SentencePieceTokenizer(source)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a SentencePiece model, e.g. tokenizer.model")
    try:
        return SentencePieceTokenizer(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _library() -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise ValueError(
            'SentencePiece is not installed; install it with: pip install "moonlet[sentencepiece]"'
        ) from None
    return sentencepiece


def _engine(model: bytes) -> Any:
    engine = _library().SentencePieceProcessor()
    try:
        # Nothing at all would be taken for "no model yet".
        if not model or not engine.load_from_serialized_proto(model) or not engine.get_piece_size():
            raise RuntimeError
    except RuntimeError:
        raise ValueError(f"these {len(model):,} bytes are no SentencePiece model") from None
    return engine


def _changes_nothing(engine: Any) -> bool:
    """Whether the model cuts a text as it stands and can spell all of it. Tried on every character of the first plane
    and on spaces where models drop them; U+2581 means a space here and cannot be told from one."""
    if sum(engine.is_byte(i) for i in range(engine.get_piece_size())) < 256:
        return False
    plane = "".join(map(chr, (*range(1, 0xD800), *range(0xE000, 0x10000)))).replace(SPACE, "")
    return all(engine.normalize(text) == text.replace(" ", SPACE) for text in (plane, "  a  b \n c  "))


def _readable(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        utf8(text)
        yield from filter(None, _UNREADABLE.split(text))


def _reason(message: str, vocab_size: int) -> ValueError:
    """The trainer's complaint in our words."""
    if found := re.search(r"value <= (\d+)", message):
        return Unreachable(vocab_size, int(found.group(1)))
    if found := re.search(r"(\d+) vs (\d+)", message):
        least = found.group(2)
        return ValueError(
            f"vocab_size {vocab_size} is below {least}, the special tokens, bytes and characters of these texts"
        )
    if "sentences_.empty" in message:
        return ValueError("there is no text to train on")
    return ValueError(f"SentencePiece cannot train on these texts: {message.splitlines()[0]}")
