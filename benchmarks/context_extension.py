"""Loss by position before and after a context extension, as a table and a picture.

    moonlet train recipes/context-base.toml data.path=tales.txt --out runs/context-base
    moonlet train recipes/context-extension.toml data.path=tales.txt train.init=runs/context-base --out runs/context-extension
    python benchmarks/context_extension.py runs/context-base runs/context-extension --out loss-by-position.png

Three models read the same windows of the validation text, packed: the base as it was trained, asked for more positions
than it ever saw; the base with YaRN switched on and nothing else changed; and the fine-tuned model. More runs may be
named, to be compared with.
"""  # noqa: E501

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import moonlet
from moonlet.cli.job import start_from
from moonlet.config import ModelConfig
from moonlet.data.stream import TokenStream
from moonlet.eval.position import PositionLosses, position_losses
from moonlet.eval.report import run_dataset
from moonlet.model.model import CausalLM
from moonlet.train.run import Run

_EDGES = [0, 32, 64, 128, 192, 256, 320, 384, 512, 640, 768, 1024]


def with_config(run: Path, config: ModelConfig) -> CausalLM:
    """The weights of a run in an architecture of the same shapes."""
    model = moonlet.build(config)
    start_from(model, run)
    return model.eval()


def curves(base: Path, extended: Path, others: list[Path], tokens: int) -> tuple[int, int, dict[str, PositionLosses]]:
    """Positions the base was trained on, positions measured, and each model's losses."""
    before = Run.open(base).recipe()
    after = Run.open(extended).recipe().model
    context = after.max_position_embeddings
    stream: TokenStream = run_dataset(Run.open(extended)).tokens("valid")
    plain = before.model.replace(max_position_embeddings=context)
    # A dictionary of makers: one model in memory at a time.
    makers = {
        "before, positions never seen": lambda: with_config(base, plain),
        "before, YaRN switched on": lambda: with_config(base, after),
        "after fine-tuning": lambda: with_config(extended, after),
        **{run.name: (lambda run=run: moonlet.load(run)[0]) for run in others},
    }
    found = {}
    for name, make in makers.items():
        with torch.no_grad():
            found[name] = position_losses(make(), stream, context, tokens)
    return before.train.seq_len, context, found


def print_table(found: dict[str, PositionLosses], context: int) -> None:
    """Nats a token by bucket of positions, one column a model."""
    edges = [edge for edge in _EDGES if edge < context] + [context]
    columns = {name: losses.buckets(edges) for name, losses in found.items()}
    print("| positions | " + " | ".join(columns) + " |\n|---" * 1 + "|---" * len(columns) + "|")
    for rows in zip(*columns.values(), strict=True):
        print(f"| {rows[0].first}-{rows[0].last} | " + " | ".join(f"{row.loss:.3f}" for row in rows) + " |")


def draw(found: dict[str, PositionLosses], trained: int, context: int, picture: Path) -> None:
    """Loss by position, smoothed over 16 positions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (name, losses), colour in zip(
        found.items(), ("#8a929c", "#c2410c", "#3b6fd4", "#15803d", "#7c3aed"), strict=False
    ):
        mean = losses.mean[: context // 16 * 16].reshape(-1, 16).mean(1)
        axes.plot([16 * i + 8.5 for i in range(len(mean))], mean, label=name, color=colour, linewidth=1.6)
    axes.axvline(trained, color="#1b1f24", linewidth=0.8, linestyle=":")
    axes.annotate(
        f" trained on {trained} positions", (trained, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8
    )
    axes.set(xlabel="position in the window", ylabel="nats a token", title="validation loss by position")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    figure.tight_layout()
    figure.savefig(picture)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("base", type=Path)
    parser.add_argument("extended", type=Path)
    parser.add_argument("others", type=Path, nargs="*", help="more runs to measure on the same text")
    parser.add_argument("--tokens", type=int, default=65_536, help="validation tokens read; 0: all")
    parser.add_argument("--out", type=Path, default=Path("loss-by-position.png"))
    given = parser.parse_args()
    trained, context, found = curves(given.base, given.extended, given.others, given.tokens)
    print_table(found, context)
    draw(found, trained, context, given.out)
    print(f"\nwritten: {given.out}")


if __name__ == "__main__":
    main()
