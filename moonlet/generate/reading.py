"""How a prompt is read, which follows from the prompt alone, and where another prompt may take over what was read.

    native        any tokens at any time give the same bits: all of it, and what is drawn behind it, may be taken over
    by the model  in pieces of PREFILL_CHUNK tokens and a rest; another length of piece has other last bits. So whole
                  pieces may be taken over, and the rest by an equal prompt

The model reads where the native step does not run, and what is too long for it; see `NativeStep.reads`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from moonlet.generate.prefix import Key
from moonlet.model.model import CausalLM

PREFILL_CHUNK = 512  # tokens the model reads at once: bounds the memory a long prompt takes

_NATIVE, _PIECE = 0, -1  # how a key's tokens were read; the rest of n tokens by the model: n


class Reading:
    """The plan of one prompt.

    Args:
        length: tokens of the prompt.
        by_model: who reads it.
        block: positions in a block of the cache.
    """

    def __init__(self, length: int, by_model: bool, block: int) -> None:
        self.length, self.by_model, self.block = length, by_model, block
        self._whole = length - length % PREFILL_CHUNK

    def piece(self, at: int, most: int, cuts: Sequence[int]) -> int:
        """Tokens to read next behind `at`: up to `most`, and up to the first of the ascending `cuts` behind."""
        if self.by_model:
            return min(PREFILL_CHUNK, self.length - at)
        return min(most, next((cut for cut in cuts if cut > at), self.length) - at)

    def key(self, tokens: Sequence[int], first: int, last: int) -> Key:
        """Of tokens first .. last - 1 in the store of beginnings."""
        how = _NATIVE if not self.by_model else _PIECE if last <= self._whole else self.length
        return how, tuple(tokens[first:last])

    def joins(self, depth: int) -> bool:
        """Whether what was read alike up to `depth` can be gone on from."""
        return not self.by_model or depth % PREFILL_CHUNK == 0 or depth == self.length


def shared_beginning(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens at which two texts begin alike; of the same kind of sequence."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@contextmanager
def not_training(model: CausalLM) -> Iterator[None]:
    """Modules that are in training mode leave it meanwhile: routers count their load there, and reading is not
    training."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
