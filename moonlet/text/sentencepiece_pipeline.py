"""A SentencePiece model as tokenizer.json, for Hugging Face, and whether the two give the same ids.

SentencePiece joins, of all neighbours that make a piece, the pair whose piece has the best score; the `tokenizers`
library has a rank for each pair. So every way to cut a piece in two becomes a merge, ranked by the score of the piece.
A unigram model carries over as it stands. What the model file says about normalisation is found out by asking the
library to normalise, and the whole is then tried, for nothing here is certain for models of other people's making.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from moonlet.text.pipeline import bpe_model, pipeline_of

SPACE = "▁"
# A score that no way to cut a text in pieces can be worse than, and small enough to leave sums their digits.
_NEVER = -1e5


def sentencepiece_pipeline(engine: Any, pieces: Sequence[str], specials: Mapping[str, int]) -> dict[str, Any]:
    """The content of tokenizer.json.

    Args:
        engine: the library's processor.
        pieces: its pieces in id order.
        specials: name -> id of control pieces, and of tokens added behind the last piece.
    """
    ordinary = {
        piece: engine.get_score(i)
        for i, piece in enumerate(pieces)
        if not (engine.is_control(i) or engine.is_byte(i) or engine.is_unknown(i) or engine.is_unused(i))
    }
    unk = engine.unk_id()
    has_bytes = any(engine.is_byte(i) for i in range(len(pieces)))
    # The score of a BPE piece is minus its rank, that of a unigram the logarithm of a probability.
    if all(score == int(score) for score in ordinary.values()):
        vocab = {piece: i for i, piece in enumerate(pieces)}
        merges = _merges(ordinary, vocab)
        model = bpe_model(vocab, merges, unk_token=pieces[unk], fuse_unk=True, byte_fallback=has_bytes)
    else:
        # The library would find the names of control pieces and bytes in a text, where SentencePiece does not look.
        scores = [[piece, ordinary.get(piece, _NEVER)] for piece in pieces]
        model = {"type": "Unigram", "unk_id": unk, "vocab": scores, "byte_fallback": has_bytes}
    return pipeline_of(specials, normalizer=_normalizer(engine), decoder=_decoder(engine), model=model)


def agreement(engine: Any, pipeline: Mapping[str, Any]) -> Literal["exact", "close", "none"]:
    """Whether the `tokenizers` library, given `pipeline`, finds the ids of `engine`.

    Returns:
        "exact": in every text tried; "close": not in all of them; "none": the library does not accept the pipeline.
    """
    from tokenizers import Tokenizer as Engine

    try:
        other = Engine.from_str(json.dumps(pipeline))
    except Exception:
        # The library raises a bare Exception for a model it does not accept.
        return "none"
    other.encode_special_tokens = True
    texts = list(_trials(engine))
    found = other.encode_batch_fast(texts, add_special_tokens=False)
    same = all(mine == theirs.ids for mine, theirs in zip(engine.encode(texts), found, strict=True))
    return "exact" if same else "close"


def _merges(ordinary: Mapping[str, float], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    merges = []
    for piece, score in ordinary.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ordinary and right in ordinary:
                # Of the cuts of one piece the longest beginning comes first: SentencePiece joins from the left, so in
                # a run of one character the long pieces stand on the left.
                merges.append((-score, vocab[piece], -cut, left, right))
    return [(left, right) for _, _, _, left, right in sorted(merges)]


def _normalizer(engine: Any) -> dict[str, Any]:
    """What the model does to a text before it is cut, as far as questions can tell."""
    steps: list[dict[str, Any]] = []
    if engine.normalize("ﬁ").endswith("fi"):  # the ligature
        steps = [{"type": "Nmt"}, {"type": "NFKC"}]
        if engine.normalize("A").endswith("a"):
            steps.append({"type": "Lowercase"})
    if engine.normalize("a  b").count(SPACE) == engine.normalize("a b").count(SPACE):
        # Spaces alone: a line end is no space here.
        steps += [_replace({"Regex": "\\A +| +\\z"}, ""), _replace({"Regex": " {2,}"}, " ")]
    if _adds_space(engine):
        steps.append({"type": "Prepend", "prepend": SPACE})
    return {"type": "Sequence", "normalizers": [*steps, _replace({"String": " "}, SPACE)]}


def _replace(pattern: Mapping[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": dict(pattern), "content": content}


def _decoder(engine: Any) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        _replace({"String": SPACE}, " "),
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if _adds_space(engine):
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _adds_space(engine: Any) -> bool:
    return bool(engine.normalize("a").startswith(SPACE))


def _trials(engine: Any) -> Iterator[str]:
    """Every piece in the company of others, every character of the Basic Multilingual Plane, and odd spaces."""
    pieces = [engine.id_to_piece(i) for i in range(engine.get_piece_size())]
    for first in range(0, len(pieces), 64):
        some = pieces[first : first + 64]
        yield " ".join(some)
        yield "".join(reversed(some)).replace(SPACE, " ")
    characters = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
    for first in range(0, len(characters), 64):
        yield "a".join(characters[first : first + 64])
    yield from (
        "",
        " ",
        "  ",
        "a",
        "  a  b ",
        "\n\na\t b\r\n",
        "aaaaaaaaaaaaaaa",
        "a" + " " * 30 + "b",
        "\U0001f98a e\u0301",
    )
