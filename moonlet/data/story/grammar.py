"""Telling by choices: one grammar, told by drawing and read back by following.

Every choice has known probabilities, so a telling with choices c_1 .. c_n carries

    bits = sum_i -log2 p(c_i | c_1 .. c_{i-1})

If each text has exactly one telling, that is the text's information content -log2 p(text), and its mean is the
entropy of the source: a floor no model can beat. `Grammar.tell` draws a telling; `Grammar.tellings` walks through all
tellings, or through those of one text, following every choice and dropping a branch at the first letter that differs.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from moonlet.data.story.notation import ARTICLE, CAPITAL, Book, Inline, Mark, Recall, Row, Sequence, Slot, Text


@dataclass(frozen=True)
class Telling:
    """One telling: its text, its bits, the index taken at each choice in order, and what it remembers."""

    text: str
    bits: float
    choices: tuple[int, ...]
    facts: Mapping[str, str]


class Branch(NamedTuple):
    """One option of a choice: the nodes that tell it and what it remembers."""

    nodes: "tuple[Node, ...]"
    binds: dict[str, str] | None


class Fork:
    """Options of one choice: bits[i] is -log2 p of option i; bounds are cumulative probabilities, None if uniform."""

    __slots__ = ("bits", "bounds", "branches", "count")

    def __init__(self, weights: list[float], branches: list[Branch]) -> None:
        total = math.fsum(weights)
        assert branches
        assert min(weights) > 0
        self.branches = branches
        self.count = len(branches)
        self.bits = [-math.log2(weight / total) for weight in weights]
        self.bounds = None if len(set(weights)) == 1 else [bound / total for bound in accumulate(weights)][:-1]


@dataclass(slots=True)
class Choice:
    """A choice whose options depend on the remembered values named in `needs`; a fork is built once for each value."""

    needs: tuple[str, ...]
    build: Callable[[tuple[str, ...]], Fork]
    forks: dict[tuple[str, ...], Fork]
    only: Fork | None = None  # the fork of a choice without needs, once built

    def at(self, facts: Mapping[str, str]) -> Fork:
        """The fork that the facts lead to."""
        if not self.needs:
            if self.only is None:
                self.only = self.build(())
            return self.only
        key = tuple([facts.get(name, "") for name in self.needs])
        fork = self.forks.get(key)
        if fork is None:
            fork = self.forks[key] = self.build(key)
        return fork


# A str prints itself and an int is a mark, so that the common nodes need no object.
Node = str | int | Recall | Choice


class Grammar:
    """Tables and rules made ready for telling.

    Args:
        book: the tables and rules; every name a slot uses must be there (ValueError names a missing one).
        start: the rule a telling begins with.
    """

    def __init__(self, book: Book, start: str) -> None:
        self.book = book
        self._rules: dict[str, Choice] = {}
        for rule in book.rules:
            self._rules[rule] = Choice((), self._rule_builder(rule), {})
        if start not in book.rules:
            raise ValueError(f"story grammar: there is no rule {start!r} to start with")
        self.start: tuple[Node, ...] = (self._rules[start],)
        for choice in self._rules.values():
            choice.at({})

    def tell(self, draw: Callable[[], float]) -> Telling:
        """Tell once, mapping each draw (uniform in [0, 1)) to an option by its probability."""
        facts: dict[str, str] = {}
        said: list[str] = []
        taken: list[int] = []
        bits = 0.0
        waiting = 0
        stack = [iter(self.start)]
        while stack:
            for node in stack[-1]:
                kind = type(node)
                if kind is str or kind is Recall:
                    piece: str = node if kind is str else facts[node.name]  # type: ignore[assignment, union-attr]
                    if waiting and piece:
                        piece, waiting = dress(piece, waiting), 0
                    said.append(piece)
                elif kind is Choice:
                    fork = node.only or node.at(facts)  # type: ignore[union-attr]
                    bounds = fork.bounds
                    index = int(draw() * fork.count) if bounds is None else bisect_right(bounds, draw())
                    bits += fork.bits[index]
                    taken.append(index)
                    nodes, binds = fork.branches[index]
                    if binds is not None:
                        facts.update(binds)
                    if nodes:
                        stack.append(iter(nodes))
                        break
                else:
                    waiting |= node  # type: ignore[operator]
            else:
                stack.pop()
        return Telling("".join(said), bits, tuple(taken), facts)

    def tellings(self, text: str | None = None) -> Iterator[Telling]:
        """Walk through every telling of `text`, or every telling there is; depth first, so memory stays small."""
        # A state is (nodes, next node, the rest to tell afterwards), position, letters, mark, bits, choices, facts.
        stack: list[_State] = [_State(self.start, 0, None, 0, None, 0, 0.0, None, {})]
        while stack:
            state = stack.pop()
            nodes, at, after, position, said, waiting, bits, taken, facts = state
            while True:
                if at == len(nodes):
                    if after is None:
                        if text is None or position == len(text):
                            letters = "".join(str(item) for item in _items(said))
                            choices = tuple(int(item) for item in _items(taken))
                            yield Telling(letters, bits, choices, facts)
                        break
                    nodes, at, after = after
                    continue
                node = nodes[at]
                at += 1
                if isinstance(node, str | Recall):
                    piece = node if isinstance(node, str) else facts[node.name]
                    if waiting and piece:
                        piece, waiting = dress(piece, waiting), 0
                    if text is not None and not text.startswith(piece, position):
                        break
                    position += len(piece)
                    said = _Chain(said, piece)
                elif isinstance(node, int):
                    waiting |= node
                else:
                    fork = node.at(facts)
                    rest = _Rest(nodes, at, after)
                    for index in range(fork.count - 1, -1, -1):
                        branch, binds = fork.branches[index]
                        if text is not None and branch and type(branch[0]) is str and branch[0]:
                            first = dress(branch[0], waiting) if waiting else branch[0]
                            if not text.startswith(first, position):
                                continue
                        known = facts if binds is None else {**facts, **binds}
                        total = bits + fork.bits[index]
                        stack.append(
                            _State(branch, 0, rest, position, said, waiting, total, _Chain(taken, index), known)
                        )
                    break

    def prepare(self, sequence: Sequence) -> "tuple[Node, ...]":
        """Make a sequence of parts ready for telling."""
        nodes: list[Node] = []
        for part in sequence:
            if isinstance(part, Text):
                nodes.append(part.text)
            elif isinstance(part, Recall):
                nodes.append(part)
            elif isinstance(part, Mark):
                nodes.append(part.mark)
            elif isinstance(part, Inline):
                fork = Fork([w for w, _ in part.options], [Branch(self.prepare(s), None) for _, s in part.options])
                nodes.append(Choice((), lambda _, fork=fork: fork, {}))  # type: ignore[misc]
            else:
                nodes.append(self._slot(part))
        return tuple(nodes)

    def _rule_builder(self, rule: str) -> Callable[[tuple[str, ...]], Fork]:
        def build(_: tuple[str, ...]) -> Fork:
            options = self.book.rules[rule]
            return Fork([weight for weight, _ in options], [Branch(self.prepare(s), None) for _, s in options])

        return build

    def _slot(self, slot: Slot) -> Choice:
        if not slot.prefix and slot.name in self._rules:
            return self._rules[slot.name]
        if not slot.prefix and slot.name not in self.book.tables:
            raise ValueError(f"story grammar: <{slot.name}> is neither a table nor a rule")
        needs = ((slot.prefix,) if slot.prefix else ()) + slot.exclude

        def build(key: tuple[str, ...]) -> Fork:
            name = f"{key[0]}.{slot.name}" if slot.prefix else slot.name
            if name in self._rules:
                return self._rules[name].at({})
            if name not in self.book.tables:
                raise ValueError(f"story grammar: <{name}> is neither a table nor a rule")
            barred = key[1:] if slot.prefix else key
            rows = [row for row in self.book.tables[name] if row.surface not in barred]
            return Fork([row.weight for row in rows], [_row_branch(row, slot) for row in rows])

        return Choice(needs, build, {})


class _Rest(NamedTuple):
    """What is told after the branch at hand."""

    nodes: tuple[Node, ...]
    at: int
    after: "_Rest | None"


class _Chain(NamedTuple):
    """Items from the last to the first; branches share what they have in common."""

    before: "_Chain | None"
    item: str | int


class _State(NamedTuple):
    nodes: tuple[Node, ...]
    at: int
    after: "_Rest | None"
    position: int
    said: "_Chain | None"
    waiting: int
    bits: float
    taken: "_Chain | None"
    facts: dict[str, str]


def dress(piece: str, waiting: int) -> str:
    """Give a piece the article and the capital that wait for it."""
    if waiting & ARTICLE:
        piece = ("an " if takes_an(piece) else "a ") + piece
    if waiting & CAPITAL:
        piece = piece[0].upper() + piece[1:]
    return piece


def takes_an(piece: str) -> bool:
    """Whether the words begin with a vowel sound."""
    word = piece.lower()
    if word.startswith(("honest", "hour")):
        return True
    return word[0] in "aeiou" and not word.startswith(("uni", "use", "one", "eu"))


def _row_branch(row: Row, slot: Slot) -> Branch:
    binds = None
    if slot.bind:
        binds = {slot.bind: row.surface} | {f"{slot.bind}.{name}": value for name, value in row.fields}
    return Branch(() if slot.silent else (row.surface,), binds)


def _items(chain: _Chain | None) -> list[str | int]:
    items: list[str | int] = []
    while chain is not None:
        items.append(chain.item)
        chain = chain.before
    return items[::-1]
