"""What texts take over from those that read the same beginning, and what they leave for others.

Where a text may begin: behind whole blocks; behind the end of a prompt or of a text, by copying the last, partly filled
block; with KDA only where a state was kept. States are kept at the ends of prompts and texts, every SNAPSHOT_BLOCKS
blocks of a prompt, and where a prompt leaves a beginning that another has read: there more will.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moonlet.generate.blocks import BlockPool
from moonlet.generate.live import Live
from moonlet.generate.prefix import Node, PrefixStore
from moonlet.generate.reading import shared_beginning
from moonlet.model.paged_cache import PagedCache, blocks_for

SNAPSHOT_BLOCKS = 8


@dataclass(frozen=True)
class Beginning:
    """A place to go on from."""

    whole: list[Node]
    """Whole blocks from the root."""
    part: Node | None
    """The block behind them, of which only the beginning is this one's; it is copied."""
    length: int
    branch: int = 0
    """Tokens up to which whole blocks are in the store, also where no state is."""

    @property
    def node(self) -> Node | None:
        """The last one."""
        return self.part if self.part is not None else self.whole[-1] if self.whole else None


class Sharing:
    """Between the live texts of an engine and its store of beginnings, of which there may be none."""

    def __init__(self, pool: BlockPool, cache: PagedCache, store: PrefixStore | None) -> None:
        self._pool, self._cache, self._store = pool, cache, store

    def place(self, text: Live, slot: int) -> bool:
        """Give a text its blocks, those of others where it begins as they did; whether there are enough."""
        block = self._cache.block
        need = blocks_for(len(text.tokens) + text.request.params.max_new_tokens - 1, block)
        found = self._find(text)
        enough = self._take(text, found, need)
        if not enough and found.part is not None:
            # The part is only copied, but must be held meanwhile: one block more.
            found = self._find(text, parts=False)
            enough = self._take(text, found, need)
        if not enough:
            return False
        text.slot = slot
        self._cache.tables[slot, :need].copy_(torch.tensor(text.blocks))
        self._take_over(text, found)
        return True

    def begin(self, text: Live, live: Sequence[Live]) -> None:
        """A text was placed: whether it waits for one before it, and where its reading pauses."""
        self._follow(text, live)

    def may_go_on(self, text: Live, live: Sequence[Live]) -> bool:
        """Whether the text that `text` follows has come far enough, or has ended; then it takes over what there is."""
        assert text.follows is not None
        leader, until = text.follows
        if leader.slot >= 0 and leader.length < until:
            return False
        text.follows = None
        found = self._find(text)
        if found.length > text.length:
            self._take_over(text, found)
        self._follow(text, live)
        return text.follows is None

    def has_read(self, text: Live, logits: Tensor | None) -> None:
        """A text has read a piece of its prompt; logits [vocab_size] where that was the last."""
        if self._store is None or text.node is None:
            return
        self._store_whole(text)
        if logits is not None:
            self._store.end(self._tip(text), logits, text.slot)
        elif self._store.stateful and text.stored * self._cache.block == text.length:
            self._store.end(text.node, None, text.slot)

    def has_ended(self, text: Live) -> None:
        """A text ends, and its memory will not change any more."""
        if self._store is None or text.node is None or text.is_reading or text.reading.by_model:
            return
        self._store_whole(text)
        tip = self._tip(text)
        if self._store.stateful:
            self._store.end(tip, None, text.slot)

    def clear(self, live: Sequence[Live]) -> None:
        """Forget all beginnings. What live texts go on to read is not stored."""
        if self._store is not None:
            self._store.clear()
        for text in live:
            text.node = None

    def _find(self, text: Live, parts: bool = True) -> Beginning:
        """The longest beginning of the prompt that can be gone on from."""
        store, reading, block, n = self._store, text.reading, self._cache.block, text.prompt_length
        if store is None:
            return Beginning([], None, 0)
        tokens = text.tokens
        path = store.path(reading.key(tokens, i, i + block) for i in range(0, n - block + 1, block))
        branch = len(path) * block
        if parts:
            last = path[-1] if path else store.root
            for end in range(min(n, branch + block - 1), branch, -1):
                part = last.children.get(reading.key(tokens, branch, end))
                if part is not None and self._joins(text, part, end):
                    return Beginning(path, part, end, branch)
        while path and not self._joins(text, path[-1], len(path) * block):
            path.pop()
        return Beginning(path, None, len(path) * block, branch)

    def _joins(self, text: Live, node: Node, depth: int) -> bool:
        assert self._store is not None
        if not text.reading.joins(depth) or (self._store.stateful and node.ending is None):
            return False
        return depth < text.prompt_length or (node.ending is not None and node.ending.logits is not None)

    def _take(self, text: Live, found: Beginning, need: int) -> bool:
        """Hold a beginning's blocks and fresh ones for the rest; whether there are enough, else nothing is held."""
        pool = self._pool
        shared = [node.block for node in found.whole]
        held = shared + ([] if found.part is None else [found.part.block])
        for block in held:
            pool.use(block)
        fresh = need - len(shared)
        enough = pool.total - pool.held >= fresh
        if enough:
            if self._store is not None:
                self._store.make_room(fresh)
            assert pool.free >= fresh, "what the store alone holds can be given up"
            text.blocks = shared + [pool.take() for _ in range(fresh)]
        for block in held[len(shared) if enough else 0 :]:
            pool.leave(block)
        return enough

    def _take_over(self, text: Live, found: Beginning) -> None:
        """Go on from a beginning, in the text's blocks."""
        store, block, n = self._store, self._cache.block, text.prompt_length
        if store is None:
            return
        for i, node in enumerate(found.whole):
            self._replace(text, i, node.block)
        if found.part is not None:
            self._cache.copy_block(found.part.block, text.blocks[len(found.whole)], found.length % block)
        text.stored = len(found.whole)
        text.node = found.whole[-1] if found.whole else store.root
        text.length = text.reused = found.length
        if found.node is not None:
            self._take_over_ending(text, found.node)
        every = SNAPSHOT_BLOCKS * block
        text.cuts = [n]
        if store.stateful and not text.reading.by_model:
            text.cuts = sorted({n, *range(every, n, every)} | ({found.branch} if 0 < found.branch < n else set()))

    def _take_over_ending(self, text: Live, node: Node) -> None:
        store, ending = self._store, node.ending
        assert store is not None
        store.touch(node)
        if store.stateful:
            assert ending is not None
            assert ending.row is not None
            self._cache.copy_state(ending.row, text.slot)
        if not text.is_reading:
            assert ending is not None
            text.logits = ending.logits

    def _follow(self, text: Live, live: Sequence[Live]) -> None:
        """Wait for a text before this one that will read more of the same beginning than there is to take over."""
        if self._store is None or not text.is_reading:
            return
        best, leader = text.length, None
        for other in live:
            if other is text:
                break
            until = self._in_common(text, other) if other.is_reading and other.node is not None else 0
            if until > best and until > other.length:
                best, leader = until, other
        if leader is None:
            return
        text.follows = leader, best
        if self._store.stateful and best not in leader.cuts:
            insort(leader.cuts, best)

    def _in_common(self, text: Live, other: Live) -> int:
        """Tokens of `other`'s prompt that `text` will be able to take over."""
        a, b, block = text.request.prompt, other.request.prompt, self._cache.block
        if text.reading.by_model != other.reading.by_model:
            return 0
        common = shared_beginning(a, b)
        if common == len(b) and (common == len(a) or not text.reading.by_model):
            return common
        common -= common % block
        while common and not (text.reading.joins(common) and other.reading.joins(common)):
            common -= block
        return common

    def _store_whole(self, text: Live) -> None:
        """Put whole blocks into the store; where it has one of the same tokens already, the text takes that."""
        assert self._store is not None
        assert text.node is not None
        block, reading = self._cache.block, text.reading
        end = min(text.length, reading.length) if reading.by_model else text.length
        for i in range(text.stored, end // block):
            key = reading.key(text.tokens, i * block, (i + 1) * block)
            text.node = self._store.extend(text.node, key, text.blocks[i])
            self._replace(text, i, text.node.block)
            text.stored = i + 1

    def _tip(self, text: Live) -> Node:
        """The node where a text ends now, which may be a part of a block."""
        assert self._store is not None
        assert text.node is not None
        first = text.stored * self._cache.block
        if first == text.length:
            return text.node
        key = text.reading.key(text.tokens, first, text.length)
        return self._store.extend(text.node, key, text.blocks[text.stored])

    def _replace(self, text: Live, i: int, block: int) -> None:
        """Another block, of the same content, in place of a text's i-th."""
        if text.blocks[i] != block:
            self._pool.use(block)
            self._pool.leave(text.blocks[i])
            text.blocks[i] = block
            self._cache.tables[text.slot, i] = block
