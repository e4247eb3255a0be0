"""The lines that end a run."""

from __future__ import annotations

from rich.console import Console

from moonlet.cli.job import Outcome
from moonlet.plot.numbers import human_bytes


def print_outcome(outcome: Outcome, console: Console) -> None:
    """Say what came out, or how to go on when the run was stopped."""
    progress, run = outcome.progress, outcome.run
    if not outcome.finished:
        console.print(f"saved at step {progress.step}; go on with: moonlet resume {run.path}", highlight=False)
        return
    console.print(
        f"trained    {progress.step} steps in {outcome.seconds / 60:.1f} minutes\n"
        f"memory     {memory(outcome)}\n"
        f"validation {verdict(outcome)}\n"
        f"run folder {run.path}",
        highlight=False,
        soft_wrap=True,
    )


def memory(outcome: Outcome) -> str:
    """The most that the process, and a GPU, had in use."""
    m = outcome.memory
    if m is None or m.process is None:
        return "not told by this system"
    on_device = f", {human_bytes(m.device)} on the GPU" if m.device else ""
    return f"{human_bytes(m.process)} at most{on_device}"


def verdict(outcome: Outcome) -> str:
    """Validation bits per byte, beside the floor where it is known; or what was recalled."""
    if outcome.recall is not None:
        return outcome.recall.describe()
    assert outcome.bits is not None
    bits = outcome.bits.bits_per_byte
    if outcome.floor is None:
        return f"{bits:.3f} bits per byte ({outcome.bits.documents:,} documents)"
    over = 100 * (bits / outcome.floor - 1)
    return (
        f"{bits:.3f} bits per byte; the entropy floor of these {outcome.bits.documents:,} synthetic stories is "
        f"{outcome.floor:.3f}, which no model can beat: {over:.1f}% above it"
    )
