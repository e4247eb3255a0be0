"""Who holds which block of a paged cache: live texts, the store of beginnings, or nobody.

A block is free when nobody holds it. What it then contains means nothing; whoever takes it writes before it reads.
"""

from __future__ import annotations

from collections.abc import Callable


class BlockPool:
    """Counts the holders of each block.

    Args:
        total: how many there are.
        freed: told of each block that has become free.
    """

    def __init__(self, total: int, freed: Callable[[int], None] | None = None) -> None:
        self.total = total
        self.held = 0
        """Blocks that live texts hold: what cannot be had by giving up all that is only kept."""
        self._free = list(range(total - 1, -1, -1))
        self._users, self._keepers = [0] * total, [0] * total
        self._freed = freed

    @property
    def free(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    def take(self) -> int:
        """A free block, for one live text."""
        block = self._free.pop()
        self.use(block)
        return block

    def use(self, block: int) -> None:
        """One more live text holds it."""
        self._users[block] += 1
        self.held += self._users[block] == 1

    def leave(self, block: int) -> None:
        """One live text fewer."""
        assert self._users[block] > 0, f"block {block} is nobody's"
        self._users[block] -= 1
        self.held -= self._users[block] == 0
        self._check(block)

    def keep(self, block: int) -> None:
        """The store holds it once more."""
        self._keepers[block] += 1

    def drop(self, block: int) -> None:
        """The store holds it once less."""
        assert self._keepers[block] > 0, f"block {block} is not kept"
        self._keepers[block] -= 1
        self._check(block)

    def is_used(self, block: int) -> bool:
        """Whether a live text holds it."""
        return self._users[block] > 0

    def _check(self, block: int) -> None:
        if not self._users[block] and not self._keepers[block]:
            self._free.append(block)
            if self._freed is not None:
                self._freed(block)
