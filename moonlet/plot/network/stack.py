"""The layers of a model as few lines as say it all: "one dense, then sixty of experts", "KDA, KDA, MLA, KDA, x 6"."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from moonlet.config import ModelConfig

_LONGEST_PATTERN = 8


class Kind(NamedTuple):
    """What a layer mixes with: a mixture of experts or not, Kimi delta attention or not."""

    moe: bool
    kda: bool = False


@dataclass(frozen=True)
class Run:
    """Consecutive layers `first` .. `last` that repeat one pattern."""

    first: int
    pattern: tuple[Kind, ...]
    times: int

    @property
    def last(self) -> int:
        """Index of the last layer."""
        return self.first + len(self.pattern) * self.times - 1

    @property
    def name(self) -> str:
        """layer 0, or layers 1-60."""
        return f"layer {self.first}" if self.first == self.last else f"layers {self.first}-{self.last}"


def layer_runs(config: ModelConfig) -> list[Run]:
    """The model's layers as the fewest patterns, first layer first."""
    return _runs(tuple(Kind(config.is_moe(i), config.is_kda(i)) for i in range(config.num_hidden_layers)))


def _runs(kinds: tuple[Kind, ...]) -> list[Run]:
    """Cut `kinds` where the drawing has the fewest layers to show, and then the fewest frames."""

    @cache
    def best(first: int) -> tuple[float, tuple[Run, ...]]:
        if first == len(kinds):
            return 0.0, ()
        options = []
        for length in range(1, min(_LONGEST_PATTERN, len(kinds) - first) + 1):
            pattern = kinds[first : first + length]
            times = 1
            while kinds[first + times * length : first + (times + 1) * length] == pattern:
                times += 1
            # A shorter run than possible may leave the rest in step with a longer pattern.
            for n in {times, max(1, times - 1)}:
                cost, rest = best(first + n * length)
                options.append((cost + length + 0.5, (Run(first, pattern, n), *rest)))
        return min(options, key=lambda option: option[0])

    # From the end, so that the recursion is never deep.
    for first in range(len(kinds), -1, -1):
        best(first)
    return list(best(0)[1])
