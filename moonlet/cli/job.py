"""A whole run, the rooms put together: corpus, tokenizer, shards, model, training, evaluation, pictures, export.

Every stage finds what an earlier start of the same run left finished, so that resuming is starting again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from moonlet import text
from moonlet.cli.bytebar import ByteBar
from moonlet.cli.progress import Display
from moonlet.config import Recipe, load_recipe, recipe_from_dict
from moonlet.data.corpus import Corpus
from moonlet.data.dataset import Dataset, open_dataset
from moonlet.data.expected import expected_bytes
from moonlet.data.loader import Loader
from moonlet.data.open import open_corpus
from moonlet.data.prepare import folder_name, prepare
from moonlet.eval.bits import Bits, measure
from moonlet.folder import model_folder, save
from moonlet.hub.read import read_model
from moonlet.model.init import build
from moonlet.model.model import CausalLM
from moonlet.ops.allocator import keep_freed_memory
from moonlet.optim.optimizer import build_optimizer
from moonlet.plot.loss import draw_loss
from moonlet.text.tokenizer import Tokenizer
from moonlet.train.checkpoint import clean_leftovers, newest_good
from moonlet.train.estimate import check_room
from moonlet.train.loop import Hooks, Trainer
from moonlet.train.metrics import read_metrics
from moonlet.train.precision import compute_dtype, pick_device
from moonlet.train.run import Run
from moonlet.train.sinks import check_sinks, open_sinks
from moonlet.train.state import Progress, read_state


@dataclass(frozen=True)
class Outcome:
    """What a run came to. `bits` is of the whole validation split; None when the run was stopped before its end."""

    run: Run
    progress: Progress
    bits: Bits | None
    floor: float | None
    seconds: float


def start(recipe: Recipe, out: Path, console: Console) -> Outcome:
    """Make the run folder `out` and train in it.

    Raises:
        ValueError: the folder holds something already, or the model is too large for this machine.
    """
    check_room(recipe)
    return go_on(Run.create(out, recipe), console)


def pretrain(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> Outcome:
    """`moonlet train` from Python; `moonlet.pretrain` is this function.

    Args:
        recipe: a TOML file, the same as nested dictionaries, or a Recipe.
        out: the run folder to make.
        overrides: changes as "a.b=c"; not with a Recipe.
        console: where progress is shown; None: nowhere.

    Returns:
        The outcome: `outcome.bits.bits_per_byte`, `outcome.run.path`, which `moonlet.load` reads.

    Raises:
        ValueError: an impossible recipe, or `out` exists.
        FileNotFoundError: no such recipe or text.
    """
    if isinstance(recipe, (str, Path)):
        recipe = load_recipe(recipe, overrides)
    elif isinstance(recipe, Mapping):
        recipe = recipe_from_dict(recipe, overrides)
    return start(recipe, Path(out), console or Console(quiet=True))


def go_on(run: Run, console: Console) -> Outcome:
    """Train in a run folder from wherever it stands: nothing prepared yet, some checkpoint, or the end."""
    with run.lock():
        recipe = run.recipe()
        check_sinks(recipe.log)
        keep_freed_memory()
        if recipe.train.threads:
            torch.set_num_threads(recipe.train.threads)
        clean_leftovers(run.checkpoints)
        with ByteBar(console) as bar:
            corpus = open_corpus(recipe.data, bar.show)
            corpus.describe()  # downloads what is not there yet; the facts are kept
        tokenizer = _tokenizer(recipe, corpus, run, console)
        dataset = _dataset(recipe, corpus, tokenizer, run, console)
        recipe = _fit_vocabulary(recipe, tokenizer)
        run.write_recipe(recipe)
        trainer = _trainer(recipe, run, tokenizer, dataset, console)
        with Display(console, recipe) as display:
            hooks = _hooks(recipe, run, tokenizer, dataset, console, display)
            step = trainer.progress.step
            with open_sinks(recipe.log, run, recipe.to_dict(), step, display.note) as sinks:
                trainer.hooks = replace(hooks, record=sinks.write)
                progress = trainer.train()
                return _finish(recipe, run, trainer, dataset, tokenizer, progress)


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


def _fit_vocabulary(recipe: Recipe, tokenizer: Tokenizer) -> Recipe:
    """The model's vocabulary and special ids are the tokenizer's; a model that exists may have rows to spare."""
    model = recipe.model.replace(
        vocab_size=max(tokenizer.vocab_size, recipe.model.vocab_size if recipe.train.init else 0),
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    return replace(recipe, model=model)


def _trainer(recipe: Recipe, run: Run, tokenizer: Tokenizer, dataset: Dataset, console: Console) -> Trainer:
    """Model, optimizer and loader, fresh or from the newest whole checkpoint."""
    t = recipe.train
    device = pick_device(t.device)
    torch.manual_seed(t.seed)  # a checkpoint's own random state, read below, replaces it
    checkpoint = newest_good(run.checkpoints, lambda warning: console.print(f"[yellow]{warning}[/]"))
    if checkpoint:
        model = read_model(checkpoint, device, torch.float32)
    else:
        model = build(recipe.model, device, t.seed)
        if t.init:
            start_from(model, Path(t.init))
    # bf16 or fp32 decides every later bit: a resumed run keeps what its start was given.
    dtype = compute_dtype(t.dtype if t.dtype != "auto" else run.facts().get("compute_dtype", "auto"), device)
    model.compute_dtype = dtype
    optimizer = build_optimizer(model, recipe.optim)
    loader = Loader(
        dataset.tokens("train"),
        seq_len=t.seq_len,
        batch_size=t.micro_batch_size or t.batch_size,
        seed=t.seed,
        align=t.separate_documents,
    )
    progress = Progress()
    if checkpoint:
        progress, _ = read_state(checkpoint, optimizer)
    facts = {"compute_dtype": str(dtype).removeprefix("torch."), "device": str(device)}
    run.write_facts(
        **facts, data=str(dataset.folder), threads=torch.get_num_threads(), resumed_from=progress.step or None
    )
    sizes = sum(p.numel() for p in model.parameters())
    console.print(f"model      {sizes:,} parameters, {facts['compute_dtype']} on {facts['device']}")
    if checkpoint:
        console.print(f"resuming   from step {progress.step}")
    return Trainer(recipe, run, model, optimizer, loader, tokenizer, progress)


def start_from(model: CausalLM, path: Path) -> None:
    """Give `model` the weights of the run or model directory at `path`.

    Only what holds no weights may differ: positions and their scaling, which experts' balance, names of tokens.

    Raises:
        ValueError: a tensor is missing there or has another shape.
    """
    folder = model_folder(path)
    given = read_model(folder, model.device, torch.float32).state_dict()
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | given.keys()):
        have, want = (list(s[name].shape) if name in s else "missing" for s in (given, wanted))
        if have != want:
            raise ValueError(f"train.init {folder}: {name} is {have} there and {want} in this recipe")
    model.load_state_dict(given)


def _hooks(
    recipe: Recipe, run: Run, tokenizer: Tokenizer, dataset: Dataset, console: Console, display: Display
) -> Hooks:
    floor, t = dataset.manifest.floor, recipe.train

    def evaluate(model: CausalLM) -> dict[str, float]:
        bits = validation_bits(model, dataset, t.seq_len, t.eval_bytes)
        display.note(f"validation {bits.bits_per_byte:.3f} bits per byte{_beside(floor)}")
        return {"loss": bits.loss, "bits_per_byte": bits.bits_per_byte, "bytes": bits.bytes}

    def sample(model: CausalLM) -> list[dict[str, str]]:
        if not recipe.prompts:
            return []
        from moonlet.generate import generate

        room = recipe.model.context_limit
        stories = generate(
            model,
            tokenizer,
            list(recipe.prompts),
            max_new_tokens=min(t.sample_tokens, room // 2),
            **asdict(recipe.sample),
        )
        return [{"prompt": p, "text": s} for p, s in zip(recipe.prompts, stories, strict=True)]

    def redraw() -> None:
        draw_loss(run.metrics_file, run.plot_file, title(recipe, dataset), floor)
        write_samples(run, recipe.name)

    return Hooks(evaluate, sample, redraw, display.show, display.note, probe=probe(dataset, t.seq_len))


def probe(dataset: Dataset, length: int) -> Tensor:
    """The first validation tokens, int64 [1, T]: what the routers' entropy is measured on."""
    stream = dataset.tokens("valid")
    return torch.from_numpy(stream.read(0, min(len(stream), length)).astype("int64"))[None]


def _finish(
    recipe: Recipe, run: Run, trainer: Trainer, dataset: Dataset, tokenizer: Tokenizer, progress: Progress
) -> Outcome:
    floor = dataset.manifest.floor
    if progress.total is None or progress.step < progress.total:
        return Outcome(run, progress, None, floor, progress.elapsed)
    save(trainer.model, tokenizer, run.model)
    bits = validation_bits(trainer.model, dataset, recipe.train.seq_len, 0)
    trainer.record_evaluation({"loss": bits.loss, "bits_per_byte": bits.bits_per_byte, "bytes": bits.bytes})
    draw_loss(run.metrics_file, run.plot_file, title(recipe, dataset), floor)
    write_samples(run, recipe.name)
    return Outcome(run, progress, bits, floor, progress.elapsed)


def validation_bits(model: CausalLM, dataset: Dataset, context: int, limit: int) -> Bits:
    """Bits per byte over about `limit` bytes of the validation split, whole documents; 0: all of it.

    The documents are taken evenly from the whole split: the first ones of a file need not be like the others.
    """
    stream = dataset.tokens("valid")
    every = max(1, round(dataset.manifest.splits["valid"].bytes / limit)) if limit else 1
    chosen = range(0, stream.n_documents, every)
    return measure(model, ((stream.document(i).tolist(), stream.document_bytes(i)) for i in chosen), context)


def title(recipe: Recipe, dataset: Dataset) -> str:
    """The heading of a run's pictures; synthetic text is always called so."""
    # A synthetic corpus says so in its own name.
    return f"{recipe.name}: {dataset.manifest.name}" + ("" if dataset.manifest.synthetic else " (real text)")


def write_samples(run: Run, name: str) -> None:
    """Write samples.md from the metrics: the same prompts, step after step."""
    from moonlet.text.atomic import atomic_write

    lines = [f"# Samples of {name}", "", "The same prompts with the same random numbers, as the model learns."]
    step: Any = None
    for record in read_metrics(run.metrics_file, "sample"):
        if record["step"] != step:
            step = record["step"]
            lines += ["", f"## Step {step}"]
        lines += ["", *(f"> {line}" for line in record["text"].splitlines() or [""])]
    if step is not None:
        atomic_write(run.samples_file, "\n".join(lines) + "\n")


def _beside(floor: float | None) -> str:
    return "" if floor is None else f" (entropy floor {floor:.3f})"
