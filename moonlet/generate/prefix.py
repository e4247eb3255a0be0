"""Beginnings that were read before: a tree of blocks, each under the tokens it holds.

    root -- 32 tokens -- 32 tokens -- 32 tokens -- ...
                    \\              \\- 7 tokens: the end of a prompt
                     \\- 32 others

A node's path from the root spells the beginning that its block is the memory of. A node of fewer tokens than a block is
a leaf: who goes on from it copies them, since behind them lies another text. Attention needs nothing but the blocks. A
state (KDA) is that of one position only, so with KDA a text can go on only from nodes with an `Ending`, which keeps a
copy of it; an ending also keeps the logits behind a whole prompt, so that an equal one is not read at all.

Least recently used goes first. A path is touched from its end to the root, so a node is never older than what hangs on
it, and leaves go before what they hang on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from moonlet.generate.blocks import BlockPool
from moonlet.model.paged_cache import PagedCache

Key = tuple[int, tuple[int, ...]]
"""How the tokens were read (see `reading.py`), and the tokens: only what was read alike has the same bits."""


@dataclass(eq=False)
class Ending:
    """What a text needs to go on behind a node, beside the blocks."""

    logits: Tensor | None
    """After the node's last token, [vocab_size]."""
    row: int | None
    """Of the cache's spare rows, where the state is; None in models without states."""


class Node:
    """One block's tokens."""

    __slots__ = ("block", "children", "ending", "key", "parent")

    def __init__(self, key: Key, block: int, parent: Node | None) -> None:
        self.key, self.block, self.parent = key, block, parent
        self.children: dict[Key, Node] = {}
        self.ending: Ending | None = None


class PrefixStore:
    """The tree, and the blocks and rows it keeps.

    Args:
        spare: rows of the cache for states; empty where the model has none.
        endings: how many are kept at most; with states as many as there are rows.
        poison: whether rows that are given up are filled with NaN.
    """

    def __init__(
        self, pool: BlockPool, cache: PagedCache, spare: Iterable[int], endings: int, poison: bool = False
    ) -> None:
        self.root = Node((0, ()), -1, None)
        self.tokens = 0
        """How many are in the tree."""
        self._pool, self._cache, self._poison = pool, cache, poison
        self._rows = list(spare)
        self.stateful = bool(self._rows)
        self._most = len(self._rows) if self.stateful else endings
        self._order: OrderedDict[Node, None] = OrderedDict()
        self._ended: OrderedDict[Node, None] = OrderedDict()

    def path(self, keys: Iterable[Key]) -> list[Node]:
        """The nodes of these keys, from the root, as far as they are there."""
        node, found = self.root, []
        for key in keys:
            child = node.children.get(key)
            if child is None:
                break
            found.append(child)
            node = child
        return found

    def touch(self, node: Node) -> None:
        """It was used, and all it hangs on."""
        if node.ending is not None:
            self._ended.move_to_end(node)
        at: Node | None = node
        while at is not None and at is not self.root:
            self._order.move_to_end(at)
            at = at.parent

    def extend(self, parent: Node, key: Key, block: int) -> Node:
        """The node of these tokens behind `parent`: the one that is there, or a new one that keeps `block`."""
        node = parent.children.get(key)
        if node is None:
            node = parent.children[key] = Node(key, block, parent)
            self._pool.keep(block)
            self.tokens += len(key[1])
            self._order[node] = None
        self.touch(node)
        return node

    def end(self, node: Node, logits: Tensor | None, source: int) -> None:
        """Texts may go on behind `node`; its state is in row `source` of the cache."""
        if node.ending is None:
            if len(self._ended) >= self._most:
                self._forget_ending(next(iter(self._ended)))
            row = None
            if self.stateful:
                row = self._rows.pop()
                self._cache.copy_state(source, row)
            node.ending = Ending(None, row)
            self._ended[node] = None
        else:
            self._ended.move_to_end(node)
        if node.ending.logits is None and logits is not None:
            node.ending.logits = logits.clone()

    def make_room(self, blocks: int) -> None:
        """Give up what was used longest ago until so many blocks are free, or nothing is left that live texts do not
        hold."""
        if self._pool.free >= blocks:
            return
        for node in list(self._order):
            if not node.children and not self._pool.is_used(node.block):
                self._forget(node)
                if self._pool.free >= blocks:
                    return

    def clear(self) -> None:
        """Give up everything."""
        for node in list(self._order):
            if node.ending is not None:
                self._forget_ending(node)
            self._pool.drop(node.block)
        self._order.clear()
        self.root.children.clear()
        self.tokens = 0

    def _forget(self, node: Node) -> None:
        assert node.parent is not None
        if node.ending is not None:
            self._forget_ending(node)
        del node.parent.children[node.key], self._order[node]
        self.tokens -= len(node.key[1])
        self._pool.drop(node.block)

    def _forget_ending(self, node: Node) -> None:
        assert node.ending is not None
        row = node.ending.row
        if row is not None:
            self._rows.append(row)
            if self._poison:
                self._cache.poison_state(row)
        node.ending = None
        del self._ended[node]
