"""The synthetic recall tasks: how long their sequences are, and which settings of them are possible.

Inputs of a sequence of size n, [BOS] included (see `moonlet.data.recall` for what they mean):

    mqar        k v  n times, ?, k  n times         3n + 2
    palindrome  w  n times, |, w  n times           2n + 1
    stack       push s e, or pop s e,  n times      3n

The last word of a palindrome and the last element of a stack are only ever predicted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moonlet.config.sections import DataSettings, TrainSettings

RECALL = ("mqar", "palindrome", "stack")
# What `data.sizes` counts.
UNITS = {"mqar": "pairs", "palindrome": "words", "stack": "operations"}


def recall_length(kind: str, size: int) -> int:
    """Inputs of one sequence without gaps, [BOS] included."""
    return {"mqar": 3 * size + 2, "palindrome": 2 * size + 1, "stack": 3 * size}[kind]


def check_recall(data: DataSettings, train: TrainSettings, tokenizer_path: str) -> None:
    """Refuse a task that cannot be drawn.

    Raises:
        ValueError: more pairs than keys, sequences longer than `train.seq_len`, or a number out of range.
    """
    kind, unit = data.kind, UNITS[data.kind]
    # A stack that is popped was pushed to before.
    least = 2 if kind == "stack" else 1
    if not data.sizes or min(data.sizes) < least:
        raise ValueError(f"data.sizes is {list(data.sizes)}; {kind} needs at least one, each of {least} {unit} or more")
    if len(set(data.sizes)) < len(data.sizes):
        raise ValueError(f"data.sizes is {list(data.sizes)}; name each number of {unit} once")
    for name, value, lowest in (
        ("words", data.words, 2),
        ("stacks", data.stacks, 1),
        ("held_out", data.held_out, len(data.sizes)),
    ):
        if value < lowest:
            raise ValueError(f"data.{name} is {value}; {kind} needs at least {lowest}")
    largest = max(data.sizes)
    if kind == "mqar" and largest > data.words:
        raise ValueError(
            f"data.sizes asks for {largest} pairs and data.words gives {data.words} keys, but no key is there twice; "
            f"give fewer pairs or data.words={largest}"
        )
    if data.gaps and kind != "mqar":
        raise ValueError(f"data.gaps is true and data.kind is {kind!r}; only mqar has gaps")
    inputs = recall_length(kind, largest)
    if inputs > train.seq_len:
        raise ValueError(
            f"{kind} of {largest} {unit} takes {inputs} tokens and train.seq_len is {train.seq_len}; "
            f"give train.seq_len={inputs} or fewer {unit}"
        )
    if tokenizer_path:
        raise ValueError(f"tokenizer.path is {tokenizer_path!r}, but {kind} brings its own tokenizer; leave it out")
