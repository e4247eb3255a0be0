"""All pictures of a run, and of several runs side by side: what `moonlet plot` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moonlet.plot.curves import draw_curves
from moonlet.plot.experts import draw_experts
from moonlet.plot.history import History
from moonlet.plot.logits import draw_logits
from moonlet.plot.prompt import Reading


def draw_run(history: History, reading: Reading | None, folder: Path, by: str = "step") -> list[Path]:
    """Draw everything known of a run into `folder` and return what was written.

    Args:
        reading: a prompt as the run's model reads it; None leaves out attention and candidates.
        by: what x axes count: "step", "tokens" or "time".
    """
    made = [*draw_curves([history], folder, by), *draw_experts(history, folder, by), *draw_logits(history, folder, by)]
    if reading is not None:
        from moonlet.plot.attention import draw_attention, draw_candidates

        if reading.attention:
            made.append(draw_attention(reading, folder / "attention.png", history.title))
        made.append(draw_candidates(reading, folder / "candidates.png", history.title))
    return made


def draw_comparison(histories: Sequence[History], folder: Path, by: str = "step") -> list[Path]:
    """Draw the curves of several runs together into `folder` and return what was written."""
    return draw_curves(histories, folder, by)
