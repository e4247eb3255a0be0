"""Synthetic recall: small tasks with one right answer, which tell architectures apart where perplexity does not.

    mqar        k3 v7 k1 v2 ? k1 k3                pairs; then every key in another order, whose value is the answer
    palindrome  w3 w1 w1 w8 | w8 w1 w1 w3          words; then the same backwards: all of them are answers
    stack       push s2 e5 push s0 e1 pop s2 e5    several stacks; what a pop brings up is the answer

Multi-query associative recall is Zoology's (Arora et al., arXiv 2312.04927); the three together are how Kimi Linear
compares token mixers (arXiv 2510.26692, section 5.1). An answer is a token that follows from those before it; all
others are random, and neither trained on nor counted: their targets are -100. The answers of mqar are not read: with
them in view a model may do without the keys, since the value of the last one is that which is left over.

Sequences are drawn on the fly. Sequence p of a seed and split is always the same one, and its size is sizes[p mod n],
so that each batch holds every size; steps are positions as in `moonlet.data.loader`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moonlet.config.recall import UNITS, recall_length
from moonlet.config.sections import DataSettings
from moonlet.data.draws import Draws, Ints
from moonlet.data.loader import Batch
from moonlet.text.word import SMALLEST, WordTokenizer

NO_TARGET = -100
Drawn = tuple[Ints, Ints]
"""Words [B, n] behind [BOS], and [B, n] the answer behind each, or NO_TARGET; from 0 and not from SMALLEST."""


@dataclass(frozen=True)
class RecallTask:
    """One task; settings as in the [data] section of a recipe.

    kind: "mqar", "palindrome" or "stack". sizes: pairs, words or operations of a sequence. words: how many keys and
    how many values there are, or words, or elements. stacks: of "stack". gaps: of "mqar", whether the room left in a
    row is spread at random before and behind the queries, as random values, which answer nothing.
    """

    kind: str
    sizes: tuple[int, ...]
    words: int
    stacks: int = 1
    gaps: bool = False

    @classmethod
    def of(cls, settings: DataSettings) -> RecallTask:
        """The task a recipe names."""
        return cls(settings.kind, settings.sizes, settings.words, settings.stacks, settings.gaps)

    @property
    def unit(self) -> str:
        """What sizes count: "pairs"."""
        return UNITS[self.kind]

    @property
    def name(self) -> str:
        """What a person calls it: "mqar (synthetic), 4 8 16 pairs"."""
        return f"{self.kind} (synthetic), {' '.join(map(str, self.sizes))} {self.unit}"

    @property
    def chance(self) -> float:
        """The share of answers that a guess among all possible ones gets right."""
        return 1 / self.words

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The words, in the order of their ids, which begin behind the special tokens."""
        if self.kind == "mqar":
            return (*_numbered("k", self.words), *_numbered("v", self.words), "?")
        if self.kind == "palindrome":
            return (*_numbered("w", self.words), "|")
        return (*_numbered("e", self.words), *_numbered("s", self.stacks), "push", "pop")

    def tokenizer(self) -> WordTokenizer:
        """Words to ids and back."""
        return WordTokenizer(self.vocabulary, glue={"?": ""})

    def draw(self, draws: Draws, size: int, length: int) -> Drawn:
        """One sequence of `size` for each row of `draws`.

        Args:
            length: words there is room for; only gaps make use of it.
        """
        if self.kind == "mqar":
            return self._mqar(draws, size, length)
        return self._palindrome(draws, size) if self.kind == "palindrome" else self._stack(draws, size)

    def _mqar(self, draws: Draws, pairs: int, length: int) -> Drawn:
        W = self.words
        keys = draws.distinct(pairs, W)  # (B, n)
        values = W + draws.below(pairs, W)  # (B, n)
        order = draws.distinct(pairs, pairs)  # (B, n), the pair that each query asks for
        told = np.stack((keys, values), 2).reshape(len(keys), -1)  # (B, 2n)
        mark = np.full((len(keys), 1), 2 * W)
        room = length - (3 * pairs + 1) if self.gaps else 0
        asked = W + draws.below(pairs + room, W)  # (B, n + room), to be written over but for the gaps
        # Sorted draws with repetition: fillers before each query.
        places = np.sort(draws.below(pairs, room + 1), 1) + np.arange(pairs)  # (B, n)
        np.put_along_axis(asked, places, np.take_along_axis(keys, order, 1), 1)
        words = np.concatenate((told, mark, asked), 1)
        answers = np.full(words.shape, NO_TARGET)
        np.put_along_axis(answers, 2 * pairs + 1 + places, np.take_along_axis(values, order, 1), 1)
        return words, answers

    def _palindrome(self, draws: Draws, words: int) -> Drawn:
        told = draws.below(words, self.words)  # (B, n)
        back = told[:, ::-1]
        mark, silence = np.full((len(told), 1), self.words), np.full(told.shape, NO_TARGET)
        return np.concatenate((told, mark, back[:, :-1]), 1), np.concatenate((silence, back), 1)

    def _stack(self, draws: Draws, operations: int) -> Drawn:
        """A coin decides between push and pop, but the last operation pops: there is always an answer."""
        W, S = self.words, self.stacks
        coins, picks = draws.below(operations, 2), draws.below(operations, 2**31)
        elements = draws.below(operations, W)  # (B, n)
        B = len(elements)
        rows, heights = np.arange(B), np.zeros((B, S), dtype=np.int64)
        held = np.zeros((B, S, operations), dtype=np.int64)
        words = np.empty((B, operations, 3), dtype=np.int64)
        answers = np.full(words.shape, NO_TARGET)
        for i in range(operations):
            filled = heights > 0  # (B, S)
            count = filled.sum(1)
            pop = (count > 0) & ((coins[:, i] == 1) | (i == operations - 1))  # (B,)
            # The stack popped is one of those that hold something, the r-th from the left.
            r = picks[:, i] % np.maximum(count, 1)
            stack = np.where(pop, (filled.cumsum(1) > r[:, None]).argmax(1), picks[:, i] % S)
            level = heights[rows, stack] - pop
            element = np.where(pop, held[rows, stack, level], elements[:, i])
            held[rows, stack, level] = element
            heights[rows, stack] = level + ~pop
            words[:, i] = np.stack((W + S + pop, W + stack, element), 1)
            answers[pop, i, 1] = element[pop]
        return words.reshape(B, -1)[:, :-1], answers.reshape(B, -1)[:, :-1]


class RecallLoader:
    """Batches of a task: as `Loader`, but drawn and not read; there are no epochs.

    Args:
        seq_len: T; sequences that are shorter are padded.
        batch_size: B, sequences a step over all ranks.
        seed: of the draw.
        split: "train", or "valid" for sequences drawn anew.
        rank, world_size: as in `Loader`.

    Raises:
        ValueError: a size does not fit into `seq_len`, or `world_size` does not divide `batch_size`.
    """

    def __init__(
        self,
        task: RecallTask,
        *,
        seq_len: int,
        batch_size: int,
        seed: int,
        split: str = "train",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if seq_len < 1 or batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"seq_len {seq_len}, batch_size {batch_size}, rank {rank} of {world_size} is impossible")
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} is not divisible by world_size {world_size}")
        longest = recall_length(task.kind, max(task.sizes))
        if longest > seq_len:
            raise ValueError(
                f"{task.kind} of {max(task.sizes)} {task.unit} takes {longest} tokens; seq_len is {seq_len}"
            )
        self.task, self.seq_len, self.batch_size = task, seq_len, batch_size
        self._seed, self._split = seed, split
        self._local = batch_size // world_size
        self._first = rank * self._local
        self._tokenizer = task.tokenizer()
        self._position = 0

    def batch(self, step: int) -> Batch:
        """The batch of one step, whatever was drawn before.

        Args:
            step: 0, 1, 2, ...

        Returns:
            inputs [B / world_size, T] and targets [B / world_size, T], int64; -100 where nothing is asked.
        """
        if step < 0:
            raise ValueError(f"step {step} is below 0")
        return self.rows(step * self.batch_size + self._first, self._local)

    def state(self) -> dict[str, int]:
        """Seed and position (sequences drawn by all ranks): all there is to resume from."""
        return {"seed": self._seed, "position": self._position}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Go on where `state()` was taken."""
        self._seed, self._position = int(state["seed"]), int(state["position"])

    def __iter__(self) -> RecallLoader:
        return self

    def __next__(self) -> Batch:
        """The next batch; never ends."""
        batch = self.rows(self._position + self._first, self._local)
        self._position += self.batch_size
        return batch

    def rows(self, position: int, count: int) -> Batch:
        """Sequences `position` .. `position + count - 1`: inputs and targets, int64 [count, T]."""
        positions = np.arange(position, position + count, dtype=np.int64)
        inputs = np.full((count, self.seq_len), self._tokenizer.pad_id)
        targets = np.full(inputs.shape, NO_TARGET)
        inputs[:, 0] = self._tokenizer.bos_id
        sizes = self.task.sizes
        for i, size in enumerate(sizes):
            here = np.flatnonzero(positions % len(sizes) == i)
            if len(here):
                draws = Draws(self._seed, self._split, positions[here])
                words, answers = self.task.draw(draws, size, self.seq_len - 1)  # (b, n)
                inputs[here, 1 : 1 + words.shape[1]] = words + SMALLEST
                targets[here, 1 : 1 + words.shape[1]] = np.where(answers == NO_TARGET, NO_TARGET, answers + SMALLEST)
        return inputs, targets

    def size_of(self, position: int) -> int:
        """Pairs, words or operations of a sequence."""
        return self.task.sizes[position % len(self.task.sizes)]


def _numbered(letter: str, count: int) -> tuple[str, ...]:
    return tuple(f"{letter}{i}" for i in range(count))
