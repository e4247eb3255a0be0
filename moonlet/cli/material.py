"""What a run learns from and is measured on: a text, prepared into shards, or a synthetic recall task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from torch import Tensor

from moonlet import text
from moonlet.cli.bytebar import ByteBar
from moonlet.config import Recipe
from moonlet.config.recall import RECALL
from moonlet.data.corpus import Corpus
from moonlet.data.dataset import Dataset, open_dataset
from moonlet.data.expected import expected_bytes
from moonlet.data.loader import Batches, Loader
from moonlet.data.open import open_corpus
from moonlet.data.prepare import folder_name, prepare
from moonlet.data.recall import RecallLoader, RecallTask
from moonlet.eval.bits import Bits, measure
from moonlet.eval.recall import RecallScores, measure_recall
from moonlet.folder import model_folder
from moonlet.model.model import CausalLM
from moonlet.text.tokenizer import Tokenizer
from moonlet.train.run import Run


class Material(Protocol):
    """A text or a task, with its tokenizer."""

    @property
    def tokenizer(self) -> Tokenizer:
        """From its text to ids."""
        ...

    @property
    def floor(self) -> float | None:
        """Bits per byte that no model can beat; None where nobody knows."""
        ...

    @property
    def folder(self) -> Path | None:
        """Where its shards lie, if it has any."""
        ...

    def title(self, name: str) -> str:
        """The heading of a run's pictures; what is synthetic is always called so."""
        ...

    def loader(self, recipe: Recipe) -> Batches:
        """The batches to train on."""
        ...

    def probe(self, length: int) -> Tensor:
        """Held-out tokens, int64 [1, T]: what the routers' entropy is measured on."""
        ...

    def evaluate(self, model: CausalLM, recipe: Recipe, whole: bool = True) -> Bits | RecallScores:
        """Measure on what was held out: all of it, or the part an evaluation while training reads."""
        ...


def open_material(recipe: Recipe, run: Run, console: Console) -> Material:
    """What `recipe` names, ready to train on; what an earlier start of the run prepared is found again."""
    if recipe.data.kind in RECALL:
        return TaskMaterial.of(recipe, run, console)
    return TextMaterial.of(recipe, run, console)


@dataclass(frozen=True)
class TextMaterial:
    """A corpus as token shards."""

    tokenizer: Tokenizer
    dataset: Dataset

    @classmethod
    def of(cls, recipe: Recipe, run: Run, console: Console) -> TextMaterial:
        """Read the corpus, train or read the tokenizer, prepare the shards."""
        with ByteBar(console) as bar:
            corpus = open_corpus(recipe.data, bar.show)
            corpus.describe()  # downloads what is not there yet; the facts are kept
        tokenizer = _tokenizer(recipe, corpus, run, console)
        return cls(tokenizer, _dataset(recipe, corpus, tokenizer, run, console))

    @property
    def floor(self) -> float | None:
        return self.dataset.manifest.floor

    @property
    def folder(self) -> Path | None:
        return self.dataset.folder

    def title(self, name: str) -> str:
        manifest = self.dataset.manifest
        # A synthetic corpus says so in its own name.
        return f"{name}: {manifest.name}" + ("" if manifest.synthetic else " (real text)")

    def loader(self, recipe: Recipe) -> Loader:
        t = recipe.train
        return Loader(
            self.dataset.tokens("train"),
            seq_len=t.seq_len,
            batch_size=t.micro_batch_size or t.batch_size,
            seed=t.seed,
            align=t.separate_documents,
        )

    def probe(self, length: int) -> Tensor:
        stream = self.dataset.tokens("valid")
        return torch.from_numpy(stream.read(0, min(len(stream), length)).astype("int64"))[None]

    def evaluate(self, model: CausalLM, recipe: Recipe, whole: bool = True) -> Bits:
        return validation_bits(model, self.dataset, recipe.train.seq_len, 0 if whole else recipe.train.eval_bytes)


@dataclass(frozen=True)
class TaskMaterial:
    """A synthetic recall task, whose sequences are drawn on the fly."""

    tokenizer: Tokenizer
    task: RecallTask
    floor: float | None = None
    folder: Path | None = None

    @classmethod
    def of(cls, recipe: Recipe, run: Run, console: Console) -> TaskMaterial:
        """Make the task's tokenizer.

        Raises:
            ValueError: the weights to start from know another vocabulary.
        """
        task = RecallTask.of(recipe.data)
        tokenizer = task.tokenizer()
        if recipe.train.init:
            known = text.load(model_folder(Path(recipe.train.init)))
            if known.content_hash() != tokenizer.content_hash():
                raise ValueError(
                    f"train.init {recipe.train.init} speaks another vocabulary than {task.name}; start from a run of "
                    f"{task.kind} with the same data.words and data.stacks"
                )
        if not (run.tokenizer / "tokenizer_config.json").is_file():
            tokenizer.save(run.tokenizer)
        console.print(f"task       {task.name}; a guess is right in 1 of {task.words}", highlight=False, soft_wrap=True)
        return cls(tokenizer, task)

    def title(self, name: str) -> str:
        return f"{name}: {self.task.name}"

    def loader(self, recipe: Recipe) -> RecallLoader:
        t = recipe.train
        batch = t.micro_batch_size or t.batch_size
        return RecallLoader(self.task, seq_len=t.seq_len, batch_size=batch, seed=t.seed)

    def probe(self, length: int) -> Tensor:
        loader = RecallLoader(self.task, seq_len=length, batch_size=1, seed=0, split="valid")
        return torch.from_numpy(loader.batch(0)[0])

    def evaluate(self, model: CausalLM, recipe: Recipe, whole: bool = True) -> RecallScores:
        length = recipe.train.seq_len
        return measure_recall(model, self.task, seq_len=length, sequences=recipe.data.held_out, seed=recipe.data.seed)


def validation_bits(model: CausalLM, dataset: Dataset, context: int, limit: int) -> Bits:
    """Bits per byte over about `limit` bytes of the validation split, whole documents; 0: all of it.

    The documents are taken evenly from the whole split: the first ones of a file need not be like the others.
    """
    stream = dataset.tokens("valid")
    every = max(1, round(dataset.manifest.splits["valid"].bytes / limit)) if limit else 1
    chosen = range(0, stream.n_documents, every)
    return measure(model, ((stream.document(i).tolist(), stream.document_bytes(i)) for i in chosen), context)


def _tokenizer(recipe: Recipe, corpus: Corpus, run: Run, console: Console) -> Tokenizer:
    """The run's tokenizer: the one it has, the one the recipe points at, or a new one trained on the corpus."""
    # Written last of a tokenizer's files.
    if (run.tokenizer / "tokenizer_config.json").is_file():
        return text.load(run.tokenizer)
    settings = recipe.tokenizer
    tokenizer: Tokenizer
    if recipe.train.init:
        tokenizer = text.load(model_folder(Path(recipe.train.init)))
    elif settings.path:
        tokenizer = text.load(Path(settings.path))
    elif settings.kind == "byte":
        tokenizer = text.ByteTokenizer()
    else:
        train = getattr(text, f"train_{settings.kind}")
        with console.status(f"training a {settings.vocab_size:,}-token {settings.kind} tokenizer"):
            documents = _first_bytes(corpus, settings.train_megabytes * 1e6)
            tokenizer = train(documents, settings.vocab_size)
    tokenizer.save(run.tokenizer)
    return tokenizer


def _first_bytes(corpus: Corpus, limit: float) -> list[str]:
    out, size = [], 0
    for document in corpus.documents("train"):
        out.append(document)
        size += len(document)
        if size >= limit:
            break
    return out


def _dataset(recipe: Recipe, corpus: Corpus, tokenizer: Tokenizer, run: Run, console: Console) -> Dataset:
    base = Path(recipe.data.cache) if recipe.data.cache else run.data
    folder = base / folder_name(corpus, tokenizer)
    totals: dict[str, int | None] = {}
    with ByteBar(console) as bar:

        def told(split: str, documents: int, size: int) -> None:
            if split not in totals:
                totals[split] = expected_bytes(corpus, split)
            bar.show(f"{split}: {documents:,} documents", size, totals[split])

        prepare(corpus, tokenizer, folder, progress=told)
    dataset = open_dataset(folder)
    train, valid = dataset.manifest.splits["train"], dataset.manifest.splits["valid"]
    console.print(
        f"corpus     {corpus.name}: {train.documents:,} documents, {train.tokens:,} tokens of "
        f"{train.bytes / train.tokens:.1f} bytes to train on; {valid.documents:,} to validate",
        highlight=False,
        soft_wrap=True,
    )
    return dataset
