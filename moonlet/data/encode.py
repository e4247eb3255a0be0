"""Documents to tokens: [BOS] ids [EOS] each, one after another, and how long each is.

A group of documents in, three arrays out. What a document becomes does not depend on its group, so the bytes of a data
set are the same however the documents are grouped and on however many processes (`moonlet.data.pool`) they are encoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moonlet.data.stream import Tokens
from moonlet.text.tokenizer import Tokenizer, utf8

# Documents are encoded in groups of about this many bytes: enough to be worth a message to another process, few
# enough that the groups under way on many cores fit into memory.
GROUP_BYTES = 2**20


class CannotEncode(ValueError):
    """A document that the tokenizer cannot encode, or encodes wrongly."""


class Encoded(NamedTuple):
    """A group of n documents.

    tokens: all of them [sum of lengths], uint16 or uint32, little-endian.
    lengths: tokens of each document [n], [BOS] and [EOS] included.
    sizes: UTF-8 bytes of each document's text [n].
    """

    tokens: Tokens
    lengths: NDArray[np.uint32]
    sizes: NDArray[np.uint32]


def dtype_for(vocab_size: int) -> str:
    """The narrowest dtype that holds the ids 0 .. vocab_size - 1.

    Raises:
        ValueError: the vocabulary is larger than 32 bits can number.
    """
    if vocab_size <= 2**16:
        return "uint16"
    if vocab_size <= 2**32:
        return "uint32"
    raise ValueError(f"a vocabulary of {vocab_size:,} ids is over the widest dtype, uint32 with {2**32:,}")


def grouped(documents: Iterable[str]) -> Iterator[list[bytes]]:
    """The documents as UTF-8, in order, in groups of at least `GROUP_BYTES` but for the last.

    Raises:
        CannotEncode: a document holds a lone surrogate.
    """
    group: list[bytes] = []
    size = 0
    for number, document in enumerate(documents, start=1):
        try:
            data = utf8(document)
        except ValueError as error:
            raise CannotEncode(f"document {number}: {error}") from None
        group.append(data)
        size += len(data)
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def encode_group(tokenizer: Tokenizer, group: Sequence[bytes], dtype: str) -> Encoded:
    """Encode one group.

    Raises:
        CannotEncode: the tokenizer gives an id outside its vocabulary.
    """
    encoded = tokenizer.encode_batch([data.decode("utf-8") for data in group])
    lengths = np.array([len(ids) + 2 for ids in encoded], dtype=np.uint32)
    tokens = np.empty(int(lengths.sum(dtype=np.uint64)), dtype=np.dtype(dtype).newbyteorder("<"))
    start = 0
    for ids in encoded:
        stop = start + len(ids) + 2
        tokens[start] = tokenizer.bos_id
        # Through 64 bits: a list that does not fit the dtype is an error of numpy's, without the names.
        inside = np.array(ids, dtype=np.int64)
        if len(ids) and not (inside.min() >= 0 and inside.max() < tokenizer.vocab_size):
            bad = next(i for i in ids if not 0 <= i < tokenizer.vocab_size)
            raise CannotEncode(
                f"the {tokenizer.kind} tokenizer gives id {bad}, but its vocabulary has {tokenizer.vocab_size} ids "
                f"(stored as {dtype}); its files are not from one tokenizer"
            )
        tokens[start + 1 : stop - 1] = inside
        tokens[stop - 1] = tokenizer.eos_id
        start = stop
    return Encoded(tokens, lengths, np.array([len(data) for data in group], dtype=np.uint32))
