"""One stream of documents in two splits, by the hash of each document's text.

    a document is for validation  <=>  blake2b-64(text) / 2^64 < valid_fraction

Copies of a text therefore lie on one side, and adding documents moves no other. The first document (and its copies)
always trains; if the hash picks none, the last document is for validation; and an only document is cut near
`1 - valid_fraction` of its length, at the end of a line or word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator


def training_part(documents: Iterable[str], valid_fraction: float, place: str) -> Iterator[str]:
    """The documents that train, in order; `place` names them in an error."""
    # One document is held back, because the last one goes to "valid" if no other did.
    held: str | None = None
    count, picked = 0, 0
    for document, for_valid in _labelled(documents, valid_fraction):
        count += 1
        picked += for_valid
        if not for_valid:
            if held is not None:
                yield held
            held = document
    if held is not None and (picked or count == 1):
        yield held if picked else _cut(held, valid_fraction, place)[0]


def validation_part(documents: Iterable[str], valid_fraction: float, place: str) -> Iterator[str]:
    """The documents for validation, in order; `place` names them in an error."""
    last = ""
    count, picked = 0, 0
    for document, for_valid in _labelled(documents, valid_fraction):
        count += 1
        picked += for_valid
        last = document
        if for_valid:
            yield document
    if not picked:
        yield _cut(last, valid_fraction, place)[1] if count == 1 else last


def _labelled(documents: Iterable[str], valid_fraction: float) -> Iterator[tuple[str, bool]]:
    """Each document with whether the hash picks it for validation."""
    first: bytes | None = None
    for document in documents:
        digest = hashlib.blake2b(document.encode("utf-8"), digest_size=8).digest()
        first = first or digest
        share = int.from_bytes(digest, "little") / 2**64
        yield document, share < valid_fraction and digest != first


def _cut(document: str, valid_fraction: float, place: str) -> tuple[str, str]:
    """The only document in two, at the last line end (else space) of the first part's second half."""
    end = int(len(document) * (1.0 - valid_fraction))
    cuts = (document.rfind(mark, end // 2, end) for mark in ("\n", " "))
    cut = next((cut for cut in cuts if cut > 0), end)
    head, tail = document[:cut].strip(), document[cut:].strip()
    if not head or not tail:
        raise ValueError(
            f"{place}: its only document ({len(document)} characters) is too short to split; give a validation file"
        )
    return head, tail
