"""Exact accuracy on the synthetic recall tasks, over held-out sequences: another stream of the same seed.

    answers    share of answer tokens that are the likeliest of the whole vocabulary
    sequences  share of sequences whose answers are all right

Each answer is predicted with the right ones before it in view. A guess among the possible answers gets 1 in `words`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.data.recall import NO_TARGET, RecallLoader, RecallTask
from moonlet.model.model import CausalLM

Answering = Callable[[Tensor, Tensor], Tensor]
"""(inputs int64 [B, T], asked bool [B, T]) -> logits [answers, vocabulary] of the tokens behind those asked."""
# Tokens a forward pass.
_BATCH_TOKENS = 16384


@dataclass(frozen=True)
class Recalled:
    """What was right among the sequences of one size, or of all."""

    answers: int
    answers_right: int
    sequences: int
    sequences_right: int
    nats: float

    @property
    def accuracy(self) -> float:
        """Share of answers that are right, 0..1."""
        return self.answers_right / self.answers

    @property
    def whole(self) -> float:
        """Share of sequences without a wrong answer, 0..1."""
        return self.sequences_right / self.sequences

    @property
    def loss(self) -> float:
        """Nats an answer."""
        return self.nats / self.answers


@dataclass(frozen=True)
class RecallScores:
    """An evaluation. `sizes`: pairs, words or operations -> what was right."""

    task: RecallTask
    sizes: dict[int, Recalled]

    @property
    def all(self) -> Recalled:
        """Of all sizes together."""
        parts = self.sizes.values()
        return Recalled(
            sum(p.answers for p in parts),
            sum(p.answers_right for p in parts),
            sum(p.sequences for p in parts),
            sum(p.sequences_right for p in parts),
            sum(p.nats for p in parts),
        )

    def figures(self) -> dict[str, float]:
        """For metrics.jsonl; accuracy by size where there is more than one."""
        every = self.all
        out = {"loss": every.loss, "accuracy": every.accuracy, "sequences_right": every.whole}
        if len(self.sizes) > 1:
            out |= {f"accuracy_{size}": part.accuracy for size, part in self.sizes.items()}
        return out

    def describe(self) -> str:
        """In one line."""
        every = self.all
        return (
            f"{every.accuracy:.1%} of {every.answers:,} answers right (by chance {self.task.chance:.1%}), "
            f"{every.whole:.1%} of {every.sequences:,} sequences whole"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""

        def plain(part: Recalled) -> dict[str, float]:
            return {
                "answers": part.answers,
                "accuracy": part.accuracy,
                "sequences": part.sequences,
                "sequences_right": part.whole,
                "loss": part.loss,
            }

        return {
            "task": self.task.name,
            "chance": self.task.chance,
            **plain(self.all),
            "sizes": {str(size): plain(part) for size, part in self.sizes.items()},
        }


def answering(model: CausalLM) -> Answering:
    """A model's answers; only where something is asked is the head computed."""

    def logits(inputs: Tensor, asked: Tensor) -> Tensor:
        hidden = model.hidden(inputs.to(model.device))
        out: Tensor = model.lm_head(hidden[asked.to(model.device)])
        return out

    return logits


def measure_recall(
    answer: CausalLM | Answering, task: RecallTask, *, seq_len: int, sequences: int, seed: int
) -> RecallScores:
    """Ask for the answers of held-out sequences.

    Args:
        answer: a model, or anything that answers.
        seq_len: T, as trained; sequences that are shorter are padded behind their end.
        sequences: how many, over all sizes.
        seed: of the draw; the held-out stream of a seed is not its training stream.

    Raises:
        ValueError: fewer sequences than sizes, or a size that does not fit into `seq_len`.
    """
    if sequences < len(task.sizes):
        raise ValueError(f"{sequences} held-out sequences for {len(task.sizes)} sizes; there must be one of each")
    model = answer if isinstance(answer, CausalLM) else None
    was_training = model is not None and model.training
    if model is not None:
        model.eval()
    at_once = min(sequences, max(1, _BATCH_TOKENS // seq_len))
    loader = RecallLoader(task, seq_len=seq_len, batch_size=at_once, seed=seed, split="valid")
    sums = {size: torch.zeros(5, dtype=torch.float64) for size in task.sizes}
    try:
        with torch.no_grad():
            for first in range(0, sequences, at_once):
                count = min(at_once, sequences - first)
                inputs, targets = (torch.from_numpy(part) for part in loader.rows(first, count))
                found = _count(answering(answer) if isinstance(answer, CausalLM) else answer, inputs, targets)
                for row, values in enumerate(found):
                    sums[loader.size_of(first + row)] += values
    finally:
        if model is not None:
            model.train(was_training)
    return RecallScores(task, {size: _recalled(*total.tolist()) for size, total in sums.items()})


def _recalled(answers: float, right: float, sequences: float, whole: float, nats: float) -> Recalled:
    return Recalled(int(answers), int(right), int(sequences), int(whole), nats)


def _count(answer: Answering, inputs: Tensor, targets: Tensor) -> Tensor:
    """What `Recalled` sums, of each row: fp64 [B, 5]."""
    asked = targets != NO_TARGET  # (B, T)
    logits = answer(inputs, asked).float().cpu()  # (answers, vocabulary)
    truth, row = targets[asked], asked.nonzero()[:, 0]
    values = torch.zeros(len(inputs), 5, dtype=torch.float64)
    values[:, 0] = asked.sum(1)
    values[:, 1].index_add_(0, row, (logits.argmax(-1) == truth).double())
    values[:, 2] = 1
    values[:, 3] = (values[:, 0] == values[:, 1]).double()
    values[:, 4].index_add_(0, row, F.cross_entropy(logits, truth, reduction="none").double())
    return values
