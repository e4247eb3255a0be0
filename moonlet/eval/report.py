"""Evaluating a folder: everything `moonlet eval` measures, as one report that prints and that JSON holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moonlet.config.recall import RECALL
from moonlet.config.recipe import Recipe
from moonlet.data.recall import RecallTask
from moonlet.eval.bits import Bits, measure
from moonlet.eval.position import Bucket, by_position, exact_bytes, position_losses
from moonlet.eval.questions import QuestionScores, ask
from moonlet.eval.recall import RecallScores, measure_recall
from moonlet.eval.texts import FileTexts, RunTexts, run_dataset
from moonlet.eval.told import Told, judge, tell
from moonlet.folder import load, model_folder
from moonlet.model.count import Counts, count
from moonlet.model.model import CausalLM
from moonlet.ops.allocator import keep_freed_memory
from moonlet.text.atomic import atomic_write
from moonlet.text.tokenizer import Tokenizer
from moonlet.train.run import Run

__all__ = ["EVAL_FILE", "Report", "Request", "evaluate_folder", "run_dataset", "save_report"]

EVAL_FILE = "eval.json"


@dataclass(frozen=True)
class Request:
    """What to measure besides loss and bits per byte; equal requests give equal figures.

    data: a text file, folder or glob; None: the run's own validation text, or its recall task. context: tokens read at
    once; None: the run's sequence length, else 1,024 or the model's limit. questions: ask about `stories` held-out
    stories of the story world. samples: let the model tell so many texts. by_position: loss by position; packed:
    straight through the documents.
    """

    data: Path | None = None
    context: int | None = None
    questions: bool = False
    stories: int = 50
    samples: int = 0
    by_position: bool = False
    packed: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Report:
    """An evaluation, of a text (`bits`) or of a recall task (`recall`).

    `floor` is None where nobody knows the text's entropy, other parts where nobody asked.
    """

    model: str
    weights: str
    text: str
    context: int
    bits: Bits | None
    floor: float | None
    counts: Counts
    lossless: bool
    seed: int = 0
    questions: QuestionScores | None = None
    told: Told | None = None
    positions: tuple[Bucket, ...] | None = None
    packed: bool = False
    recall: RecallScores | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a part nobody asked for is missing."""
        b = self.bits
        out: dict[str, Any] = {
            "weights": self.weights,
            "parameters": self.counts.total,
            "active_parameters": self.counts.active,
        }
        if b is not None:
            out["text"] = {
                "name": self.text,
                "documents": b.documents,
                "bytes": b.bytes,
                "tokens": b.tokens,
                "context": self.context,
                "loss": b.loss,
                "bits_per_byte": b.bits_per_byte,
                "floor": self.floor,
                "lossless_tokenizer": self.lossless,
            }
        if self.recall is not None:
            out["recall"] = {"context": self.context, **self.recall.to_dict()}
        if self.questions is not None:
            out["questions"] = {"seed": self.seed, **self.questions.to_dict()}
        if self.told is not None:
            out["told"] = {"seed": self.seed, **self.told.to_dict()}
        if self.positions is not None:
            out["packed" if self.packed else "by_position"] = {
                "text": self.text,
                "context": self.context,
                "positions": [bucket.to_dict() for bucket in self.positions],
            }
        return out


def evaluate_folder(path: Path, request: Request | None = None) -> Report:
    """Measure the model in `path`.

    Args:
        path: a run folder or a Hugging Face directory.

    Raises:
        ValueError: nothing to evaluate on, or an impossible request.
    """
    request = request or Request()
    keep_freed_memory()
    run = Run.open(path) if (path / "recipe.toml").is_file() else None
    if request.data is None and run is None:
        raise ValueError(f"{path} is no run folder, so it has no validation text of its own; give --data FILE")
    recipe = run.recipe() if run else None
    if request.data is None and recipe is not None and recipe.data.kind in RECALL:
        return _recall_report(path, request, recipe)
    model, tokenizer = load(path)
    texts = FileTexts(request.data, tokenizer) if request.data else RunTexts(run or Run.open(path), tokenizer)
    context = request.context
    if context is None:
        context = recipe.train.seq_len if recipe else min(1024, model.config.max_position_embeddings)
    bits = measure(model, texts.documents(), context)
    positions = None
    if request.by_position or request.packed:
        positions = _positions(model, tokenizer, texts, context, request.packed)
    questions = None
    if request.questions:
        # The world of the run's own stories; where that is not known, the world that recipes have by default.
        world = recipe.data.seed if recipe and recipe.data.kind == "story" else 0
        questions = ask(model, tokenizer, request.stories, context, world, request.seed)
    told = None
    if request.samples:
        story_world = request.questions or (recipe is not None and recipe.data.kind == "story")
        completions = tell(model, tokenizer, request.samples, request.seed)
        told = judge(completions, texts.plain(), _training(run, tokenizer), story_world)
    folder = model_folder(path)
    return Report(
        model=str(path),
        weights=str(folder.relative_to(path)),
        text=texts.name,
        context=context,
        bits=bits,
        floor=texts.floor,
        counts=count(model.config),
        lossless=tokenizer.lossless,
        seed=request.seed,
        questions=questions,
        told=told,
        positions=positions,
        packed=request.packed,
    )


def _recall_report(path: Path, request: Request, recipe: Recipe) -> Report:
    """What a run of a recall task answers; no text, so nothing of what is asked about texts."""
    for asked, option in (
        (request.questions, "--questions"),
        (request.samples, "--samples"),
        (request.by_position, "--by-position"),
        (request.packed, "--packed"),
    ):
        if asked:
            raise ValueError(
                f"{path} learnt {recipe.data.kind}, which is no text; leave out {option}, or give --data FILE"
            )
    model, tokenizer = load(path)
    task, context = RecallTask.of(recipe.data), request.context or recipe.train.seq_len
    scores = measure_recall(
        model, task, seq_len=context, sequences=recipe.data.held_out, seed=recipe.data.seed + request.seed
    )
    return Report(
        model=str(path),
        weights=str(model_folder(path).relative_to(path)),
        text=f"{task.name}, held out",
        context=context,
        bits=None,
        floor=None,
        counts=count(model.config),
        lossless=tokenizer.lossless,
        seed=request.seed,
        recall=scores,
    )


def _positions(
    model: CausalLM, tokenizer: Tokenizer, texts: FileTexts | RunTexts, context: int, packed: bool
) -> tuple[Bucket, ...]:
    sizes = exact_bytes(tokenizer)
    if packed:
        return tuple(position_losses(model, texts.packed(), context, token_bytes=sizes).buckets())
    return tuple(by_position(model, texts.documents(), context, token_bytes=sizes))


def _training(run: Run | None, tokenizer: Tokenizer) -> Iterator[str] | None:
    """The training text, where it is at hand."""
    try:
        return RunTexts(run, tokenizer).training() if run else None
    except (ValueError, FileNotFoundError):
        return None


def save_report(report: Report, path: Path) -> Path | None:
    """Write a run's eval.json, atomically; None where `path` is no run folder.

    Parts that were measured earlier on the same weights are kept.
    """
    if not (path / "recipe.toml").is_file():
        return None
    file = path / EVAL_FILE
    new = report.to_dict()
    try:
        old = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        old = {}
    if isinstance(old, dict) and old.get("weights") == new["weights"]:
        new = {**old, **new}
    atomic_write(file, json.dumps(new, indent=2, sort_keys=True) + "\n")
    return file
