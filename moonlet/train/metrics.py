"""metrics.jsonl: one JSON object a line, each with `step` and `kind`.

train        loss (nats a token), lr, grad_norm, tokens_per_s, data_wait (seconds that the step waited for its batches);
             where tokens are routed also load_max, load_dead and load_entropy (see `balance_step`), and aux_loss, which
             is no part of loss, where optim.aux_loss_alpha is not 0; where logits are tracked max_logit, or
             max_logit_bound where it is only known not to exceed that, and clipped heads
experts      a MoE layer each: load (share of each expert), max_over_mean, entropy (nats)
attention    a layer each: clipped heads; and of each head max_logits of the step, or null and logit_bound, and gamma
eval         loss, bits_per_byte and bytes of the validation text; of a recall task loss, accuracy (share of answers
             that are right), sequences_right (share of sequences that are right throughout) and, where there are
             several sizes, accuracy_SIZE of each
routers      a MoE layer each: entropy (nats) of the router's normalised scores, mean over the tokens of a fixed text
alarm        experts of a layer that have collapsed (see `moonlet.train.alarm`): crowd (share of the tokens that the
             busiest takes), dead and experts (counts), text
memory       at the end: process and device (bytes at most) and faults (page faults of a step, the median); see
             `moonlet.train.footprint`
sample, skip, checkpoint
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from moonlet.text.atomic import atomic_write

Listener = Callable[[Mapping[str, Any]], None]


class Metrics:
    """Appends lines; every line is flushed, so a killed run loses at most the one being written.

    Args:
        listener: told every record after it was written; see `moonlet.train.sinks`.
    """

    def __init__(self, path: Path, listener: Listener | None = None) -> None:
        self.path = path
        self._listener = listener
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one line."""
        record = {"kind": kind, "step": step, **values}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._listener is not None:
            self._listener(record)

    def sync(self) -> None:
        """Make sure that what was written survives a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file, of one kind or all; a torn last line is passed over."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # torn by a kill: its step is computed again
            if kind is None or record.get("kind") == kind:
                yield record


def keep_until(path: Path, step: int) -> None:
    """Drop the lines after `step`, which a resumed run is about to compute again."""
    if path.is_file():
        kept = [json.dumps(record) for record in read_metrics(path) if record["step"] <= step]
        atomic_write(path, "".join(line + "\n" for line in kept))
