"""A stream of tokens that lies in several memory-mapped arrays and reads like one.

Only the pages that are read come into memory, so the stream may be larger than it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Sizes(Protocol):
    """The bytes of each document, by its index: an array, or whatever works them out."""

    def __getitem__(self, index: int, /) -> Any: ...


# uint16 or uint32; numpy's types cannot say "one of these" without a type variable on every user.
Tokens = NDArray[Any]


class TokenStream:
    """Tokens 0 .. len - 1, and where each document starts.

    Args:
        shards: arrays [n] of one unsigned dtype, in order, none empty.
        offsets: [documents + 1] start of each document in the stream, then the end of the last; or None.
        sizes: [documents] UTF-8 bytes of each document's text, anything that an index looks up; or None.
    """

    def __init__(
        self, shards: Sequence[Tokens], offsets: NDArray[np.uint64] | None = None, sizes: Sizes | None = None
    ) -> None:
        self._shards = list(shards)
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])
        self._offsets = offsets
        self._sizes = sizes

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def n_documents(self) -> int:
        """Number of documents; 0 when the stream has no offsets."""
        return 0 if self._offsets is None else len(self._offsets) - 1

    def read(self, start: int, stop: int) -> Tokens:
        """Tokens [stop - start] from `start` up to `stop`, across shards; a view where one shard holds them all.

        Raises:
            IndexError: the range is not inside the stream.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start}..{stop} are not inside a stream of {len(self)}")
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts = []
        while start < stop:
            offset = start - int(self._starts[first])
            part = self._shards[first][offset : offset + stop - start]
            parts.append(part)
            start, first = start + len(part), first + 1
        if not parts:
            return self._shards[0][:0]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def aligned_starts(self, seq_len: int) -> NDArray[np.int64]:
        """Starts of stretches of `seq_len + 1` tokens that begin with a document wherever they can.

        A document that a stretch cuts begins the next one whole, so its first part is read twice and no part is read
        without its beginning; only a document longer than `seq_len` goes on in the middle.
        """
        if self._offsets is None:
            raise ValueError("the stream has no document offsets to align sequences to; prepare the data anew")
        offsets = np.asarray(self._offsets, dtype=np.int64)
        starts, start, last = [], 0, len(self) - seq_len - 1
        while start <= last:
            starts.append(start)
            cut = int(offsets[np.searchsorted(offsets, start + seq_len, side="right") - 1])
            start = cut if cut > start else start + seq_len
        return np.array(starts, dtype=np.int64)

    def document(self, index: int) -> Tokens:
        """The tokens of one document, [BOS] and [EOS] included.

        Raises:
            IndexError: there is no such document.
        """
        if self._offsets is None or not 0 <= index < self.n_documents:
            raise IndexError(f"document {index} is not among the {self.n_documents} of this stream")
        return self.read(int(self._offsets[index]), int(self._offsets[index + 1]))

    def document_bytes(self, index: int) -> int:
        """UTF-8 bytes of one document's original text: what bits per byte are counted over, also where the tokenizer
        is lossy and decoding would not give that text back.

        Raises:
            IndexError: there is no such document.
            ValueError: the stream does not know them.
        """
        if self._offsets is None or not 0 <= index < self.n_documents:
            raise IndexError(f"document {index} is not among the {self.n_documents} of this stream")
        if self._sizes is None:
            raise ValueError("the stream does not know the bytes of its documents; prepare the data anew")
        return int(self._sizes[index])
