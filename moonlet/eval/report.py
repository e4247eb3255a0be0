"""Evaluating a folder on a file: what `moonlet eval` prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moonlet.data.corpus import TextFileCorpus, read_documents
from moonlet.data.dataset import Dataset, open_dataset
from moonlet.data.manifest import MANIFEST_FILE
from moonlet.eval.bits import Bits, encoded, measure
from moonlet.folder import load
from moonlet.ops.allocator import keep_freed_memory
from moonlet.train.run import Run


@dataclass(frozen=True)
class Report:
    """An evaluation with its names. `floor` is None where nobody knows the text's entropy."""

    model: str
    text: str
    context: int
    bits: Bits
    floor: float | None

    def lines(self) -> str:
        """For a terminal."""
        b = self.bits
        out = [
            f"model         {self.model}",
            f"text          {self.text}: {b.documents:,} documents, {b.bytes:,} bytes, {b.tokens:,} tokens",
            f"context       {self.context} tokens",
            f"loss          {b.loss:.4f} nats a token",
            f"bits per byte {b.bits_per_byte:.4f}",
        ]
        if self.floor is not None:
            out.append(f"entropy floor {self.floor:.4f} ({100 * (b.bits_per_byte / self.floor - 1):.1f}% above it)")
        return "\n".join(out)


def evaluate_folder(path: Path, data: Path | None, context: int | None) -> Report:
    """Measure the model in `path` on the text file `data`, or on the run's own validation split.

    Args:
        path: a run folder or a Hugging Face directory.
        data: documents between `<|endoftext|>` lines; None needs a run folder.
        context: tokens read at once; None takes the run's sequence length, else 1,024 or the model's limit.

    Raises:
        ValueError: nothing to evaluate on, or an impossible context.
    """
    keep_freed_memory()
    run = Run.open(path) if (path / "recipe.toml").is_file() else None
    if data is None and run is None:
        raise ValueError(f"{path} is no run folder, so it has no validation text of its own; give --data FILE")
    if data is not None:
        TextFileCorpus(data)  # for its checks: present, not empty
    model, tokenizer = load(path)
    if context is None:
        context = run.recipe().train.seq_len if run else min(1024, model.config.max_position_embeddings)
    if data is not None:
        bits = measure(model, encoded(tokenizer, read_documents(data)), context)
        return Report(str(path), data.name, context, bits, None)
    assert run is not None
    dataset = run_dataset(run)
    stream = dataset.tokens("valid")
    ids = (stream.document(i).tolist() for i in range(stream.n_documents))
    bits = measure(model, ((d, len(tokenizer.decode_bytes(d[1:-1]))) for d in ids), context)
    name = f"{dataset.manifest.name}, validation split"
    return Report(str(path), name, context, bits, dataset.manifest.floor)


def run_dataset(run: Run) -> Dataset:
    """The prepared data set of a run: the one inside its folder, or the shared one that run.json names."""
    found = [p.parent for p in run.data.glob(f"*/{MANIFEST_FILE}")]
    if not found:
        named = run.facts().get("data")
        found = [Path(named)] if isinstance(named, str) else []
    if not found:
        raise ValueError(f"{run.path} has no prepared data set; give --data FILE")
    return open_dataset(found[0])
