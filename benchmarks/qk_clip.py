"""QK-Clip at work: attention logits of a run whose learning rate makes them explode, without the clip and with it.

    python benchmarks/qk_clip.py --out runs/qk-clip          # one thread; a second start goes on
    python benchmarks/qk_clip.py --quick --out /tmp/trial    # the same code in seconds

Both runs are Muon's, with the same first weights and text, four times the best learning rate, which falls late, and no
weight decay, so that nothing but the clip holds the logits back. In each step the largest scaled logit q k^T scale of
every head, over the whole batch and all pairs of tokens that attend to each other, is taken from the very q and k that
the forward pass attends with. After the step, the clipped run scales every head whose logit exceeded tau by tau over it
(Kimi K2, arXiv 2507.20534 section 2.1). The next batch is another text, whose largest logit differs by some 5% even
where the weights stay as they are; hence the margin in what is shown to hold:

* without the clip the largest logit exceeds 10 tau;
* with it the forward pass sees at most 1.2 tau from step 21 on;
* the clipped run's validation loss is not above the other's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from small_runs import Laboratory, Taken, add_options, common, merged, table

from moonlet.model.model import CausalLM
from moonlet.model.observe import watching_attention
from moonlet.ops.max_logit import reference
from moonlet.plot.canvas import FLOOR, INK, TRAIN, VALID, label, legend, margins, new_figure, save
from moonlet.plot.loss import smooth

# Steps after which the clipped run must have its logits in hand, and within what multiple of tau.
_SETTLED, _WITHIN, _EXPLODED = 20, 1.2, 10
WITHOUT, WITH = "without", "with"
COLOURS = {WITHOUT: VALID, WITH: TRAIN}


@contextmanager
def logits_of(model: CausalLM) -> Iterator[Tensor]:
    """Watch the forward passes inside the block: fp32 [L, H], the largest logit of each head since it was last zeroed.

    What attends stays what it was; the logits are computed beside it, all of them, by the law of the op.
    """
    config = model.config
    maxima = torch.full((config.num_hidden_layers, config.num_attention_heads), -torch.inf)

    @torch.no_grad()
    def see(layer: int, q: Tensor, k: Tensor, scale: float, start: int | Tensor, documents: Tensor | None) -> None:
        if model.training:
            torch.maximum(maxima[layer], reference(q, k, scale, start, documents).cpu(), out=maxima[layer])

    with watching_attention(model, see):
        yield maxima


@contextmanager
def noting(model: CausalLM) -> Iterator[Callable[[], dict[str, Any]]]:
    """Note each step's largest logits."""
    with logits_of(model) as maxima:

        def after_step() -> dict[str, Any]:
            seen = [[round(value, 3) for value in row] for row in maxima.tolist()]
            maxima.fill_(-torch.inf)
            return {"max_logit": seen}

        yield after_step


def measure(lab: Laboratory, given: argparse.Namespace) -> dict[str, Taken]:
    """Both runs."""
    train = {"steps": given.steps, "eval_every": max(1, given.steps // 10)}
    changes = {"train": train, "optim": {"lr": given.lr, "weight_decay": 0.0, "decay_fraction": 0.2}}
    kinds = {WITHOUT: {"kind": "muon"}, WITH: {"kind": "muonclip", "qk_clip_tau": given.tau}}
    return {
        name: lab.run(merged(changes, {"optim": optim}), f"{name} QK-Clip", noting) for name, optim in kinds.items()
    }


def logits(run: Taken) -> tuple[list[int], list[list[float]]]:
    """Steps, and the largest logit of every head of every layer at each."""
    lines = run.of("watched")
    return [line["step"] for line in lines], [[m for row in line["max_logit"] for m in row] for line in lines]


def report(runs: dict[str, Taken], given: argparse.Namespace) -> str:
    """A table, and what holds."""
    head = ["", "largest logit", "of tau", f"after step {_SETTLED}, of tau", f"logits above {_WITHIN} tau",
            "heads ever above tau", "final validation bits per byte"]  # fmt: skip
    rows: list[list[Any]] = [head]
    largest, settled = {}, {}
    for name, run in runs.items():
        steps, values = logits(run)
        late = [value for step, row in zip(steps, values, strict=True) if step > _SETTLED for value in row]
        largest[name], settled[name] = max(map(max, values)), max(late, default=0.0)
        beyond = sum(value > _WITHIN * given.tau for value in late)
        above = sum(max(column) > given.tau for column in zip(*values, strict=True))
        rows.append([f"{name} QK-Clip", f"{largest[name]:.1f}", f"{largest[name] / given.tau:.2f}",
                     f"{settled[name] / given.tau:.3f}", f"{beyond} of {len(late)}", f"{above} of {len(values[0])}",
                     f"{run.bits:.4f}"])  # fmt: skip
    held = {
        f"without the clip a logit exceeds {_EXPLODED} tau": largest[WITHOUT] > _EXPLODED * given.tau,
        f"with it none exceeds {_WITHIN} tau after step {_SETTLED}": settled[WITH] <= _WITHIN * given.tau,
        "loss does not suffer": runs[WITH].bits <= 1.005 * runs[WITHOUT].bits,
    }
    verdicts = "\n".join(f"- {what}: {'yes' if yes else 'NO'}" for what, yes in held.items())
    return f"tau = {given.tau:g}, peak learning rate {given.lr:g}\n\n{table(rows)}\n\n{verdicts}"


def draw(runs: dict[str, Taken], tau: float, picture: Path) -> None:
    """Largest logit of each head over time, both runs side by side, and their losses beneath."""
    figure = new_figure(10, 6.4, "Attention logits at a learning rate too high, without and with QK-Clip")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.5, 1))
    margins(figure, left=0.72, top=0.8, bottom=0.5, hspace=0.38, wspace=0.08)
    first = None
    for place, (name, run) in enumerate(runs.items()):
        axes = figure.add_subplot(grid[0, place], sharey=first)
        _draw_logits(axes, *logits(run), name, tau)
        if first is None:
            first = axes
            axes.set_ylabel("largest logit in the batch", fontsize=8)
        else:
            axes.tick_params(labelleft=False)
    below = figure.add_subplot(grid[1, :])
    label(below, "loss in nats a token: training (lines, smoothed) and validation (marks)", "step")
    for name, run in runs.items():
        train, evals = run.of("train"), run.of("eval")
        below.plot(
            [line["step"] for line in train], smooth([line["loss"] for line in train]), color=COLOURS[name],
            linewidth=1.1, alpha=0.8, linestyle="-" if name == WITHOUT else (0, (5, 2)),
        )  # fmt: skip
        below.plot(
            [line["step"] for line in evals], [line["loss"] for line in evals], "os"[name == WITHOUT],
            color=COLOURS[name], markersize=5, label=f"{name} QK-Clip: {run.bits:.3f} bits per byte",
        )  # fmt: skip
    below.set_xlim(0, train[-1]["step"] * 1.01)
    legend(below)
    save(figure, picture)


def _draw_logits(axes: Any, steps: Sequence[int], values: Sequence[Sequence[float]], name: str, tau: float) -> None:
    """A line a head, the largest of all on top; log scale."""
    label(axes, f"{name} QK-Clip: a line a head, thick the largest", "step")
    axes.set_yscale("log")
    for column in zip(*values, strict=True):
        # A maximum may be below zero, which a log scale does not show.
        axes.plot(steps, [max(value, 1e-2) for value in column], color=COLOURS[name], linewidth=0.8, alpha=0.35)
    axes.plot(steps, [max(row) for row in values], color=COLOURS[name], linewidth=2)
    for level, text, colour in ((tau, f"tau = {tau:g}", INK), (10 * tau, "10 tau", FLOOR)):
        axes.axhline(level, color=colour, linewidth=1.1, linestyle="--")
        axes.annotate(text, (0.01, level), xycoords=("axes fraction", "data"), textcoords="offset points",
                      xytext=(0, 3), fontsize=8, color=colour)  # fmt: skip
    axes.set_xlim(0, steps[-1])
    axes.set_ylim(bottom=tau / 20)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Take both runs, print, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser, "runs/qk-clip", 400)
    parser.add_argument("--lr", type=float, default=4e-2, help="peak, far above the best one")
    parser.add_argument("--tau", type=float, default=170.0, help="the logit above which a head is clipped")
    given = parser.parse_args(arguments)
    if given.quick:
        given.steps = min(given.steps, 12)
    lab = Laboratory(
        given.out,
        "runs.jsonl",
        merged(
            {"model": {"num_hidden_layers": 2}, "optim": {"warmup_steps": max(1, given.steps // 20)}}, common(given)
        ),
    )
    runs = measure(lab, given)
    print(report(runs, given))
    picture = given.out / "qk-clip.png"
    draw(runs, given.tau, picture)
    print(f"\nwritten: {picture}")


if __name__ == "__main__":
    main()
