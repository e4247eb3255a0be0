r"""The word-level tokenizer: one id a word, lower-cased, and one id for every word that is not in the vocabulary.

    tokens(x) = re.findall(r"\w+|[^\w\s]", x.lower())

The vocabulary is the most frequent tokens. White space and capitals are lost, so decoding writes them anew: see
`moonlet.text.readable`. Re-encoding the decoded text gives the same ids, `<unk>` and special tokens aside.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moonlet.text.detokenizer import Detokenizer
from moonlet.text.pipeline import pipeline_of, save_folder
from moonlet.text.readable import GLUE, WordDetokenizer, is_mark
from moonlet.text.tokenizer import BOS, EOS, N_SPECIALS, PAD, SpecialFinder, default_specials, hash_content, utf8

UNK = "<unk>"
SMALLEST = N_SPECIALS + 1
_TOKEN = re.compile(r"\w+|[^\w\s]")
# The same classes in the syntax of the `tokenizers` library, whose \w takes in combining marks and whose \s leaves out
# the four separators of ASCII.
_SPLIT = r"[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s\x1c-\x1f]"
# Python writes a capital sigma that ends a word as its final form; the library's lower-casing looks at one character.
_FINAL_SIGMA = r"(?<=\p{L})\u03a3(?!\p{L})".replace(r"\u03a3", "Σ")
# A word inside a sentence: it stands behind a word, or behind a comma, and one space.
_INSIDE = re.compile(r"(?<=[\w,] )\w+")
_LEFT = re.compile(r"\w([^\w\s])"), re.compile(r"\s([^\w\s])")
_RIGHT = re.compile(r"([^\w\s])(?=\w)"), re.compile(r"([^\w\s])(?=\s)")


class WordTokenizer:
    """A word-level vocabulary. See `moonlet.text.tokenizer.Tokenizer` for the methods, `train_word` to make one.

    Ids: the specials, then `<unk>` (16), then the tokens. `<unk>` is no special token: it stands for a word, is decoded
    as "<unk>", and plain text that spells it is three tokens like any other.

    Args:
        tokens: words in lower case and single marks, in id order.
        surfaces: word -> its spelling inside a sentence, where that is not lower case: {"lily": "Lily"}.
        glue: mark -> "<" (no space before it), ">" (none after it), "<>" or "".

    Raises:
        ValueError: a token that the regular expression would not give, one that is there twice, a spelling whose lower
            case is another word.
    """

    kind = "word"
    lossless = False

    def __init__(
        self, tokens: Sequence[str], surfaces: Mapping[str, str] | None = None, glue: Mapping[str, str] | None = None
    ) -> None:
        self.specials = default_specials()
        self.bos_id, self.eos_id, self.pad_id = (self.specials[name] for name in (BOS, EOS, PAD))
        self.unk_id: int | None = len(self.specials)
        self.tokens = list(tokens)
        self.surfaces = dict(sorted((surfaces or {}).items()))
        self.glue = dict(sorted((glue or {}).items()))
        self.vocab_size = SMALLEST + len(self.tokens)
        self._check()
        self._names = {index: name for name, index in self.specials.items()}
        self._spelling = [*self.specials, UNK, *self.tokens]
        self._ids = {token: SMALLEST + rank for rank, token in enumerate(self.tokens)}
        self._find_specials = SpecialFinder(self.specials)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of `text`."""
        utf8(text)
        return self._find_specials.encode(text, self._encode) if allow_special else self._encode(text)

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text, allow_special=allow_special) for text in texts]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Readable text of `ids`."""
        stream = self.detokenizer(skip_special=skip_special)
        return "".join([stream.push(index) for index in ids]) + stream.finish()

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """`decode` in UTF-8. Not the bytes that were encoded: see `lossless`."""
        return self.decode(ids).encode("utf-8")

    def piece(self, index: int) -> bytes:
        """The token of one id, in lower case."""
        return self._token(index).encode("utf-8")

    def detokenizer(self, before: Sequence[int] = (), *, skip_special: bool = False) -> Detokenizer:
        """Decode ids one at a time; the text of each comes with the next one."""
        return WordDetokenizer(self._token, self._names, self.surfaces, self.glue, before, skip_special)

    def save(self, folder: Path) -> None:
        """Write the tokenizer folder: for Hugging Face this is a WordLevel model, which decodes to lower case."""
        save_folder(self, folder, self.pipeline(), {"surfaces": self.surfaces, "glue": self.glue})

    def pipeline(self) -> dict[str, Any]:
        """The content of tokenizer.json."""
        sigma = {"type": "Replace", "pattern": {"Regex": _FINAL_SIGMA}, "content": "ς"}
        return pipeline_of(
            self.specials,
            normalizer={"type": "Sequence", "normalizers": [sigma, {"type": "Lowercase"}]},
            # Inverted: what matches is kept and what does not (white space) is thrown away.
            pre_tokenizer={"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Removed", "invert": True},
            # A space between words and none before punctuation: as near as the library comes to readable text.
            decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
            model={
                "type": "WordLevel",
                "vocab": {token: index for index, token in enumerate(self._spelling)},
                "unk_token": UNK,
            },
        )

    def content_hash(self) -> str:
        """sha256 of kind, specials, tokens, spellings and glue."""
        return hash_content(
            {
                "kind": self.kind,
                "specials": self.specials,
                "tokens": self.tokens,
                "surfaces": self.surfaces,
                "glue": self.glue,
            }
        )

    def _encode(self, text: str) -> list[int]:
        find, unknown = self._ids.get, SMALLEST - 1
        return [find(token, unknown) for token in _TOKEN.findall(text.lower())]

    def _token(self, index: int) -> str:
        if not 0 <= index < self.vocab_size:
            raise ValueError(f"token id {index} is outside the vocabulary, 0..{self.vocab_size - 1}")
        return self._spelling[index]

    def _check(self) -> None:
        for token in self.tokens:
            if _TOKEN.findall(token.lower()) != [token]:
                raise ValueError(f"{token!r} is no word in lower case and no single mark")
        if len(set(self.tokens)) != len(self.tokens):
            twice = next(token for token, count in Counter(self.tokens).items() if count > 1)
            raise ValueError(f"{twice!r} is in the vocabulary twice")
        for word, surface in self.surfaces.items():
            if _TOKEN.findall(surface) != [surface] or surface.lower() != word:
                raise ValueError(f"surface {surface!r} is no spelling of {word!r}")
        for mark, glue in self.glue.items():
            if not is_mark(mark) or glue not in ("", "<", ">", "<>"):
                raise ValueError(f"glue {glue!r} of {mark!r}: a mark has one of '', '<', '>', '<>'")


def train_word(texts: Iterable[str], vocab_size: int, *, min_frequency: int = 1) -> WordTokenizer:
    """Count the words of `texts` (streamed; only counts are kept) and keep the most frequent.

    Deterministic: words of one count come in alphabetical order, so the order of the texts does not matter.

    Args:
        texts: the documents.
        vocab_size: ids at most, the 16 specials and `<unk>` included; fewer words make a smaller vocabulary.
        min_frequency: a word seen less often is left out.

    Raises:
        ValueError: `vocab_size` leaves no room for a word, no word is frequent enough, a text holds a lone surrogate.
    """
    if vocab_size <= SMALLEST:
        raise ValueError(
            f"vocab_size {vocab_size} leaves no room for words: {SMALLEST} ids are special tokens and {UNK}"
        )
    words: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    marks: tuple[Counter[str], ...] = (Counter(), Counter(), Counter(), Counter())
    for text in texts:
        utf8(text)
        words.update(_TOKEN.findall(text.lower()))
        inside.update(_INSIDE.findall(text))
        for counter, pattern in zip(marks, (*_LEFT, *_RIGHT), strict=True):
            counter.update(pattern.findall(text))
    frequent = [(-count, word) for word, count in words.items() if count >= min_frequency]
    if not frequent:
        raise ValueError(f"no word is there {min_frequency} times; give more text or lower min_frequency")
    tokens = [word for _, word in sorted(frequent)[: vocab_size - SMALLEST]]
    return WordTokenizer(tokens, _surfaces(tokens, inside), _glue(tokens, marks))


def _surfaces(tokens: Sequence[str], inside: Counter[str]) -> dict[str, str]:
    """The spelling that each word mostly has inside a sentence, where that is not lower case."""
    # Never seen inside a sentence, the English pronoun is still a capital.
    best: dict[str, tuple[int, str]] = {"i": (0, "I")}
    for surface, count in inside.items():
        word = surface.lower()
        # Of equal counts the lower-case form wins, then the alphabet.
        if word not in best or (-count, surface != word, surface) < (
            -best[word][0],
            best[word][1] != word,
            best[word][1],
        ):
            best[word] = (count, surface)
    kept = {word: best[word][1] for word in tokens if word in best}
    # A sigma's small form depends on what follows, so no capital one is written inside a word.
    return {word: surface for word, surface in kept.items() if surface != word and "Σ" not in surface}


def _glue(tokens: Sequence[str], marks: Sequence[Counter[str]]) -> dict[str, str]:
    """On which sides a mark mostly stands without a space, where that is not as usual.

    `marks`: how often each has a word before it, white space before it, a word after it, white space after it.
    """
    word_before, space_before, word_after, space_after = marks
    found = {}
    for mark in filter(is_mark, tokens):
        usual = GLUE.get(mark, "")
        left = _more(word_before[mark], space_before[mark], "<" in usual)
        right = _more(word_after[mark], space_after[mark], ">" in usual)
        glue = "<" * left + ">" * right
        if glue != usual:
            found[mark] = glue
    return found


def _more(yes: int, no: int, otherwise: bool) -> bool:
    return otherwise if yes == no else yes > no
