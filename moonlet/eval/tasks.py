"""Running tasks of EleutherAI's lm-eval on a model, offline: one of our own from the story world, or any other.

lm-eval reads a task from a YAML file and its examples through the `datasets` package. The story task is written as
JSON, which YAML includes, beside a local file of examples; nothing is looked for outside. Other tasks are taken from a
folder of task files, or from lm-eval's own, which mostly fetch their data from the Hugging Face hub.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moonlet.data.story.asking import prompt
from moonlet.eval.asked import held_out
from moonlet.eval.table import aligned
from moonlet.folder import load
from moonlet.text.atomic import atomic_write

STORY_TASK = "story_questions"
_STORIES = 100


def run_tasks(
    path: Path, names: Sequence[str], tasks_dir: Path | None = None, limit: int | None = None
) -> dict[str, dict[str, float]]:
    """Run lm-eval tasks on the model in `path`.

    Args:
        path: a run folder or a Hugging Face directory.
        names: of tasks; "story_questions" is made here.
        tasks_dir: a folder of task files, searched besides.
        limit: examples a task, at most.

    Returns:
        Task -> metric -> value, with "<metric>_stderr" where lm-eval estimates one.

    Raises:
        ValueError: lm-eval is not installed, or there is no such task.
    """
    if find_spec("lm_eval") is None:
        raise ValueError('--lm-eval needs the package lm-eval: pip install "moonlet[lm-eval]"')
    if not names:
        raise ValueError(f"no task is named; {STORY_TASK} is built in")
    if tasks_dir is not None and not tasks_dir.is_dir():
        raise FileNotFoundError(f"{tasks_dir}: no such folder of tasks")
    model, tokenizer = load(path)
    with TemporaryDirectory(prefix="moonlet-tasks-") as temporary, _offline_if(set(names) == {STORY_TASK}):
        folder = Path(temporary)
        if STORY_TASK in names:
            write_story_task(folder / "tasks")
        found = _evaluate(model, tokenizer, names, [folder / "tasks", *([tasks_dir] if tasks_dir else [])], limit)
    return {task: _metrics(found["results"][task]) for task in found["results"]}


def write_story_task(folder: Path, stories: int = _STORIES, seed: int = 0) -> Path:
    """Write the story world's questions as a multiple-choice task of lm-eval: a data file and the task file.

    Args:
        stories: held-out stories to ask about.
        seed: of the draw of candidates.

    Returns:
        The task file.
    """
    data = folder / f"{STORY_TASK}.jsonl"
    lines = [
        {
            "prompt": prompt(asked.story, asked.question.text),
            "kind": asked.question.kind,
            "choices": list(asked.candidates),
            "label": asked.right,
        }
        for asked in held_out(stories, seed=seed)
        # lm-eval wants a choice.
        if len(asked.candidates) > 1
    ]
    atomic_write(data, "".join(json.dumps(line) + "\n" for line in lines))
    task = {
        "task": STORY_TASK,
        "dataset_path": "json",
        # Beside the data, so that nothing is left in the user's cache.
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "target_delimiter": " ",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }
    file = folder / f"{STORY_TASK}.yaml"
    atomic_write(file, json.dumps(task, indent=2) + "\n")
    return file


def table(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Model -> task -> metric -> value, as a table with a column a model."""
    rows = [["", *figures]]
    lines = dict.fromkeys(
        (task, metric)
        for tasks in figures.values()
        for task, metrics in tasks.items()
        for metric in metrics
        if not metric.endswith("_stderr")
    )
    for task, metric in lines:
        row = [f"{task} {metric}"]
        for tasks in figures.values():
            metrics = tasks.get(task, {})
            error = metrics.get(f"{metric}_stderr")
            value = f"{metrics[metric]:.4f}" if metric in metrics else "-"
            row.append(value if error is None else f"{value} +- {error:.4f}")
        rows.append(row)
    return aligned(rows)


def _evaluate(
    model: Any, tokenizer: Any, names: Sequence[str], folders: Sequence[Path], limit: int | None
) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    from moonlet.eval.harness import MoonletLM

    local = [str(folder) for folder in folders if folder.is_dir()]
    manager = TaskManager(include_path=local, include_defaults=False)
    # Reading the names of lm-eval's own tasks takes seconds, so they are read only when they are wanted.
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=local or None)
    missing = sorted(set(names) - set(manager.all_tasks))
    if missing:
        raise ValueError(
            f"lm-eval knows no task {', '.join(missing)}; {STORY_TASK} is built in, --tasks-dir adds yours"
        )
    found = simple_evaluate(
        model=MoonletLM(model, tokenizer),
        tasks=list(names),
        limit=limit,
        task_manager=manager,
        bootstrap_iters=1000,
        log_samples=False,
    )
    assert found is not None  # None is for processes other than the first
    return dict(found)


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """lm-eval's "acc,none" and "acc_stderr,none" as "acc" and "acc_stderr"; a filter other than none stays named."""
    found = {}
    for key, value in result.items():
        name, _, chosen = key.partition(",")
        if isinstance(value, int | float) and not isinstance(value, bool) and chosen:
            found[name if chosen == "none" else f"{name} ({chosen})"] = float(value)
    return found


@contextmanager
def _offline_if(offline: bool) -> Iterator[None]:
    """Keep the Hugging Face packages from looking anything up, where everything is at hand."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if offline else ()
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
