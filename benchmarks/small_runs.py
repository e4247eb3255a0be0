"""Small training runs, each kept as one line of a file: what the benchmarks that compare runs share.

They read the story world, text files, or draw a recall task.

A run is a recipe, trained as `moonlet train` trains it, and its line holds what the recipe changes and what was
measured. A benchmark that is started again finds the lines and takes only the runs that are missing, so an interruption
costs one run at most. Another folder, or deleting the file, begins anew; do so after the mathematics changed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from moonlet import text  # noqa: E402
from moonlet.config import Recipe, recipe_from_dict  # noqa: E402
from moonlet.config.sections import DataSettings  # noqa: E402
from moonlet.data.corpus import Corpus  # noqa: E402
from moonlet.data.dataset import Dataset, open_dataset  # noqa: E402
from moonlet.data.loader import Batches, Loader  # noqa: E402
from moonlet.data.open import open_corpus  # noqa: E402
from moonlet.data.prepare import folder_name, prepare  # noqa: E402
from moonlet.eval.bits import measure  # noqa: E402
from moonlet.model.init import build  # noqa: E402
from moonlet.model.model import CausalLM  # noqa: E402
from moonlet.ops.allocator import keep_freed_memory  # noqa: E402
from moonlet.optim.optimizer import build_optimizer  # noqa: E402
from moonlet.text.tokenizer import Tokenizer  # noqa: E402
from moonlet.train.loop import Hooks, Trainer, TrainingStopped  # noqa: E402
from moonlet.train.metrics import read_metrics  # noqa: E402
from moonlet.train.run import Run  # noqa: E402
from moonlet.train.state import Progress  # noqa: E402

Changes = Mapping[str, Mapping[str, Any]]
Watch = Callable[[CausalLM], AbstractContextManager[Callable[[], dict[str, Any]]]]
"""Looks into a model while it trains: yields what is called after each step; its result is kept with the metrics."""

# A k2-nano of half the width and three layers, the first of them dense: about a tenth of a second a step on one core.
MODEL: dict[str, Any] = {
    "preset": "k2-nano",
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 64,
    "kv_lora_rank": 32,
    "intermediate_size": 384,
    "moe_intermediate_size": 128,
}
RECIPE: dict[str, dict[str, Any]] = {
    "model": MODEL,
    "tokenizer": {"kind": "bpe", "vocab_size": 1024},
    "data": {"kind": "story", "megabytes": 4.0, "valid_stories": 120},
    # In bf16, by name: "auto" probes, and two runs of one comparison must not differ by a probe's outcome.
    "train": {"seq_len": 128, "batch_size": 16, "dtype": "bfloat16", "save_every": 0},
}
# For runs that say themselves which model they train.
ANY_MODEL = {section: values for section, values in RECIPE.items() if section != "model"}
# What --quick makes of it: the same code in seconds, and numbers that mean nothing.
QUICK: dict[str, dict[str, Any]] = {
    "model": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
        "intermediate_size": 48, "moe_intermediate_size": 16,
    },
    "tokenizer": {"vocab_size": 300},
    "data": {"megabytes": 0.05, "valid_stories": 3},
    "train": {"seq_len": 32, "batch_size": 4},
}  # fmt: skip


def merged(*tables: Changes) -> dict[str, dict[str, Any]]:
    """Nested tables, later ones winning."""
    out: dict[str, dict[str, Any]] = {}
    for table in tables:
        for section, values in table.items():
            out[section] = {**out.get(section, {}), **values}
    return out


@dataclass(frozen=True)
class Taken:
    """One finished run: the changes that made it and the lines of its metrics.jsonl."""

    changes: dict[str, Any]
    metrics: list[dict[str, Any]]
    seconds: float

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Its lines of one kind, in the order of their steps."""
        return [line for line in self.metrics if line["kind"] == kind]

    @property
    def diverged(self) -> bool:
        """Whether it stopped at numbers that are not finite."""
        if not self.of("eval") or self.of("stopped"):
            return True
        steps = self.changes["train"].get("steps", 0)  # none where it had a time budget
        return bool(steps) and self.of("eval")[-1]["step"] != steps

    @property
    def bits(self) -> float:
        """Bits per byte of the validation text at its end; infinite when it diverged."""
        return float("inf") if self.diverged else float(self.of("eval")[-1]["bits_per_byte"])

    @property
    def final(self) -> dict[str, Any]:
        """The figures of its last evaluation; empty when it diverged."""
        return {} if self.diverged else self.of("eval")[-1]

    @property
    def curve(self) -> tuple[list[int], list[float]]:
        """Steps and bits per byte of its evaluations."""
        evals = self.of("eval")
        return [line["step"] for line in evals], [line["bits_per_byte"] for line in evals]


@contextmanager
def _unwatched(model: CausalLM) -> Iterator[Callable[[], dict[str, Any]]]:
    yield dict


class Laboratory:
    """A folder with the data, prepared once, and the file of finished runs.

    Args:
        folder: made when missing.
        file: name of the file of runs in it.
        base: what all runs have in common, on top of `common`.
    """

    common: Changes = RECIPE
    trainer: type[Trainer] = Trainer
    tokenizer_bytes = 1_000_000  # of training text that the tokenizer is trained on

    def __init__(self, folder: Path, file: str, base: Changes) -> None:
        self.folder, self.file = folder, folder / file
        self.base = merged(self.common, base)
        folder.mkdir(parents=True, exist_ok=True)
        keep_freed_memory()

    def recipe(self, changes: Changes) -> Recipe:
        """The whole recipe of a run that differs from the others by `changes`."""
        recipe = recipe_from_dict({"prompts": [], **merged(self.base, changes)})
        tokenizer = self.tokenizer_of(recipe)
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
        return replace(recipe, model=recipe.model.replace(vocab_size=tokenizer.vocab_size, **ids))

    def tokenizer_of(self, recipe: Recipe) -> Tokenizer:
        """A run's tokenizer: one for all."""
        return self.tokenizer

    def loader_of(self, recipe: Recipe) -> Batches:
        """What a run trains on."""
        t, stream = recipe.train, self.dataset.tokens("train")
        return Loader(stream, seq_len=t.seq_len, batch_size=t.batch_size, seed=t.seed, align=t.separate_documents)

    def model_of(self, recipe: Recipe, benchmark: Mapping[str, Any]) -> CausalLM:
        """What a run trains; `benchmark` is that section of its changes."""
        return build(recipe.model, seed=recipe.train.seed)

    def evaluate(self, model: CausalLM, recipe: Recipe) -> dict[str, float]:
        """All of the validation text, each story from its beginning."""
        stream = self.dataset.tokens("valid")
        stories = ((stream.document(i).tolist(), stream.document_bytes(i)) for i in range(stream.n_documents))
        bits = measure(model, stories, recipe.train.seq_len)
        return {"loss": bits.loss, "bits_per_byte": bits.bits_per_byte}

    def outcome(self, taken: Taken) -> str:
        """A run's result in a few words."""
        return f"{taken.bits:.4f} bits per byte"

    def run(self, changes: Changes, label: str, watch: Watch = _unwatched) -> Taken:
        """Train, or find it done. A section "benchmark" of `changes` is no recipe's; it tells runs apart."""
        whole = merged(self.base, changes)
        for taken in self.runs():
            if taken.changes == whole:
                return taken
        changes = {section: values for section, values in changes.items() if section != "benchmark"}
        recipe = self.recipe(changes)
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=self.folder) as work:
            metrics = self._train(recipe, whole.get("benchmark", {}), Path(work) / "run", watch)
        return self.keep(whole, metrics, time.perf_counter() - begin, label)

    def _train(self, recipe: Recipe, benchmark: Mapping[str, Any], folder: Path, watch: Watch) -> list[dict[str, Any]]:
        """One run from its first weights to its end, and what it noted."""
        t, lines = recipe.train, []
        run = Run.create(folder, recipe)
        model = self.model_of(recipe, benchmark)
        model.compute_dtype = getattr(torch, t.dtype)
        loader, tokenizer = self.loader_of(recipe), self.tokenizer_of(recipe)
        trainer = self.trainer(recipe, run, model, build_optimizer(model, recipe.optim), loader, tokenizer)
        with watch(model) as after_step:

            def show(progress: Progress, record: Mapping[str, Any]) -> None:
                if line := after_step():
                    lines.append({"kind": "watched", "step": progress.step, **line})

            trainer.hooks = Hooks(evaluate=lambda model: self.evaluate(model, recipe), show=show)
            try:
                if trainer.train().step < t.steps:
                    # Stopped by a signal, which is no result: the next start takes it anew.
                    raise SystemExit("stopped, as asked; start it again to go on")
                trainer.record_evaluation(self.evaluate(model, recipe))
            except TrainingStopped as stopped:  # a result too, at a high learning rate
                print(stopped, file=sys.stderr)
                lines.append({"kind": "stopped", "step": trainer.progress.step, "why": str(stopped)})
            lines += getattr(trainer, "notes", [])
        kinds = ("train", "eval", "experts", "attention")
        return [line for line in read_metrics(run.metrics_file) if line["kind"] in kinds] + lines

    def runs(self) -> list[Taken]:
        """All finished ones of the file; a line torn by a kill is passed over."""
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else []
        out = []
        for line in lines:
            try:
                out.append(Taken(**json.loads(line)))
            except json.JSONDecodeError:
                continue
        return out

    def keep(self, changes: dict[str, Any], metrics: list[dict[str, Any]], seconds: float, label: str) -> Taken:
        """Append one finished run to the file, and say so."""
        taken = Taken(changes, metrics, round(seconds, 1))
        with self.file.open("a", encoding="utf-8") as file:
            # A torn last line must not swallow this one.
            file.write(("\n" if _torn(self.file) else "") + json.dumps(vars(taken)) + "\n")
        print(f"{label}: {self.outcome(taken)}, {seconds:.0f} s", file=sys.stderr, flush=True)
        return taken

    @property
    def tokens_per_step(self) -> int:
        """What a step reads."""
        return int(self.base["train"]["seq_len"] * self.base["train"]["batch_size"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """One for all runs, trained on the first stories."""
        return text.load(self._tokenizer_folder)

    @cached_property
    def dataset(self) -> Dataset:
        """The token shards of all runs."""
        corpus = self._corpus
        folder = self.folder / "data" / folder_name(corpus, self.tokenizer)
        prepare(corpus, self.tokenizer, folder, workers=1)
        return open_dataset(folder)

    @cached_property
    def _corpus(self) -> Corpus:
        return open_corpus(DataSettings(**self.base["data"]))

    @cached_property
    def _tokenizer_folder(self) -> Path:
        settings, data = self.base["tokenizer"], self.base["data"]
        source = f"{data['megabytes']:g}" if data["kind"] == "story" else Path(data.get("path") or data["kind"]).stem
        folder = self.folder / f"tokenizer-{settings['vocab_size']}-{source}"
        # Written last of a tokenizer's files.
        if not (folder / "tokenizer_config.json").is_file():
            left = self.tokenizer_bytes

            def within(story: str) -> bool:
                nonlocal left
                left -= len(story)
                return left > 0

            stories = list(takewhile(within, self._corpus.documents("train")))
            text.train_bpe(stories, settings["vocab_size"]).save(folder)
        return folder


def _torn(file: Path) -> bool:
    data = file.read_bytes() if file.is_file() else b""
    return bool(data) and not data.endswith(b"\n")


def add_options(parser: argparse.ArgumentParser, out: str, steps: int) -> None:
    """The options all these benchmarks have."""
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the data, the runs and the picture")
    parser.add_argument("--steps", type=int, default=steps, help="steps of a run")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="what is computed in")
    parser.add_argument("--quick", action="store_true", help="a trial of seconds; its numbers mean nothing")


def common(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What those options change in every run."""
    torch.set_num_threads(given.threads)
    table = {"train": {"threads": given.threads, "dtype": given.dtype}}
    return merged(QUICK, table) if given.quick else table


def table(rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table; the first row is its head."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
