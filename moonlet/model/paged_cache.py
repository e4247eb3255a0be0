"""A cache in blocks: what many texts that come and go remember, in memory that is taken once.

    position p of a text  ->  block table[text, p // S], place p mod S        attention: latents, or keys and values
    text                  ->  a row of constant size                          KDA: states and convolution inputs

Attention's layers are caches of N blocks where a contiguous cache has rows, and of S positions where that has max_len,
so one block as long as a text would be the contiguous case. A block may stand in several tables: texts with the same
beginning share it, for what is written at a position is never changed. KDA has a row for each text and spare ones, for
states worth going back to.

Who holds which block is not known here (`generate/blocks.py`). Memory that is given out again holds anything; a text
reads only positions it has written or was given, and a state only where it has read a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moonlet.model.cache import Cache, DeltaCache, KeyValueCache, LatentCache, LayerCache
from moonlet.model.model import CausalLM


class PagedCache:
    """Memory for `texts` texts at a time.

    Args:
        blocks: of attention's positions, for all texts together.
        block: positions in one.
        most: blocks that one text can have.
        spare: rows of KDA's memory beyond the texts', which are texts .. texts + spare - 1.
    """

    def __init__(self, model: CausalLM, texts: int, blocks: int, block: int, most: int, spare: int) -> None:
        self.block = block
        self.scratch = blocks
        """A block beyond the texts', for what nobody will read."""
        self.tables = torch.zeros(texts, most, dtype=torch.int64)
        """Each text's blocks, int64 [texts, most], on the CPU."""
        # A row of KDA's memory has no positions; of the blocks, one more is the scratch block.
        self.layers: list[LayerCache] = [
            model.layer_cache(i, *((texts + spare, 1) if model.config.is_kda(i) else (blocks + 1, block)))
            for i in range(model.config.num_hidden_layers)
        ]

    @property
    def max_len(self) -> int:
        """Tokens that one text can have."""
        return self.tables.shape[1] * self.block

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""
        return sum(layer.nbytes for layer in self.layers)

    def copy_block(self, source: int, to: int, positions: int) -> None:
        """Copy the first positions of a block."""
        for layer in self.layers:
            if isinstance(layer, LatentCache):
                layer.entries[to, :positions] = layer.entries[source, :positions]
            elif isinstance(layer, KeyValueCache):
                layer.entries[:, to, :, :positions] = layer.entries[:, source, :, :positions]

    def copy_state(self, source: int, to: int) -> None:
        """Copy a row of KDA's memory."""
        for layer in self.layers:
            if isinstance(layer, DeltaCache):
                layer.state[to] = layer.state[source]
                layer.inputs[to] = layer.inputs[source]

    def poison_block(self, block: int) -> None:
        """Fill a block with NaN: to see whether anybody reads what he was not given."""
        for layer in self.layers:
            if isinstance(layer, LatentCache):
                layer.entries[block] = float("nan")
            elif isinstance(layer, KeyValueCache):
                layer.entries[:, block] = float("nan")

    def poison_state(self, row: int) -> None:
        """Fill a row of KDA's memory with NaN."""
        for layer in self.layers:
            if isinstance(layer, DeltaCache):
                layer.state[row] = layer.inputs[row] = float("nan")

    def contiguous(self, text: int, length: int, more: int) -> Cache:
        """A text that holds `length` tokens as a cache of one row with room for `more`: attention's positions copied,
        KDA's memory a view. What is then written goes back by `put_back`."""
        blocks = self._blocks(text, 0, length + more)
        layers = [_gathered(layer, blocks, text) for layer in self.layers]
        return Cache(layers, torch.tensor([length]), len(blocks) * self.block)

    def put_back(self, cache: Cache, text: int, first: int, last: int) -> None:
        """Take positions first .. last - 1 over from what `contiguous` gave."""
        blocks, skipped = self._blocks(text, first // self.block, last), first // self.block
        for layer, own in zip(self.layers, cache.layers, strict=True):
            part = slice(skipped, skipped + len(blocks))
            if isinstance(layer, LatentCache):
                assert isinstance(own, LatentCache)
                layer.entries[blocks] = own.entries[0].unflatten(0, (-1, self.block))[part]
            elif isinstance(layer, KeyValueCache):
                assert isinstance(own, KeyValueCache)
                pieces = own.entries[:, 0].unflatten(2, (-1, self.block))[:, :, part]  # (2, G, blocks, S, K)
                layer.entries[:, blocks] = pieces.transpose(1, 2)

    def _blocks(self, text: int, first: int, positions: int) -> Tensor:
        """Of a text, from its block `first` to that of the last of so many positions."""
        return self.tables[text, first : -(-positions // self.block)]


def _gathered(layer: LayerCache, blocks: Tensor, text: int) -> LayerCache:
    if isinstance(layer, LatentCache):
        return LatentCache(layer.entries[blocks].flatten(0, 1)[None])  # (1, blocks S, R+P)
    if isinstance(layer, KeyValueCache):
        return KeyValueCache(layer.entries[:, blocks].transpose(1, 2).flatten(2, 3)[:, None])  # (2, 1, G, blocks S, K)
    return layer.rows(text, text + 1)


def blocks_for(tokens: int, block: int) -> int:
    """Blocks that so many tokens take."""
    return -(-tokens // block)
