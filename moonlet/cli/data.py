"""`moonlet data`: make story-world text, prepare any text for training, look at what was prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Make, prepare and look at training text.",
    no_args_is_help=True,
    epilog="Example: moonlet data story --megabytes 10 --out stories.txt",
)


@app.command(epilog="Example: moonlet data story --megabytes 10 --out stories.txt --valid valid.txt")
def story(
    out: Annotated[Path, typer.Option(help="Text file to write, documents between <|endoftext|> lines.")],
    megabytes: Annotated[float, typer.Option(help="Size of the training text, in millions of bytes.")] = 10.0,
    valid: Annotated[Path | None, typer.Option(help="Also write the validation stories to this file.")] = None,
    valid_stories: Annotated[int, typer.Option(help="Number of validation stories.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the world.")] = 0,
) -> None:
    """Tell stories of the built-in story world (synthetic text with a known entropy floor)."""
    from rich.console import Console

    from moonlet.data import StoryCorpus
    from moonlet.data.corpus import write_documents

    console = Console(soft_wrap=True)
    corpus = StoryCorpus(megabytes=megabytes, valid_stories=valid_stories, seed=seed)
    for split, path in (("train", out), ("valid", valid)):
        if path is not None:
            count, size = write_documents(corpus.documents(split), path)
            console.print(
                f"{path}: {count:,} {split} stories, {size:,} bytes, synthetic (story world, seed {seed})", markup=False
            )
    console.print(f"entropy floor: {corpus.floor():.4f} bits per byte over {valid_stories:,} validation stories")


@app.command(
    epilog="Example: moonlet data prepare stories.txt --tokenizer tokenizers/stories-2048 --out prepared/stories"
)
def prepare(
    file: Annotated[Path, typer.Argument(help="UTF-8 text, documents between <|endoftext|> lines.")],
    tokenizer: Annotated[str, typer.Option(help="Tokenizer folder, or 'byte' for the byte tokenizer.")],
    out: Annotated[Path, typer.Option(help="Folder for the token shards.")],
    valid: Annotated[Path | None, typer.Option(help="Validation text; without it a share of FILE is used.")] = None,
    valid_fraction: Annotated[float, typer.Option(help="Share of FILE for validation.")] = 0.1,
) -> None:
    """Turn a text file into memory-mapped token shards with a manifest."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from moonlet.data import TextFileCorpus
    from moonlet.data.prepare import prepare as prepare_corpus
    from moonlet.text import ByteTokenizer, load

    corpus = TextFileCorpus(file, valid, valid_fraction)
    encoder = ByteTokenizer() if tokenizer == "byte" else load(Path(tokenizer))
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("reading")

        def show(split: str, documents: int, size: int) -> None:
            bar.update(task, description=f"{split}: {documents:,} documents, {size / 1e6:,.1f} MB")

        prepare_corpus(corpus, encoder, out, progress=show)
    _print_manifest(out)


@app.command(epilog="Example: moonlet data show prepared/stories")
def show(
    folder: Annotated[Path, typer.Argument(help="Folder that `moonlet data prepare` wrote.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare the hashes.")] = False,
) -> None:
    """Print what a prepared folder holds, and its first document."""
    from rich.console import Console

    from moonlet.data import open_dataset

    dataset = open_dataset(folder, verify=verify)
    _print_manifest(folder)
    first = dataset.tokens("train").document(0)
    console = Console(soft_wrap=True)
    console.print("\nfirst document:")
    # Text of a corpus is not markup: brackets in it must come out as they are.
    console.print(dataset.tokenizer().decode(first.tolist()), markup=False, highlight=False)


def _print_manifest(folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from moonlet.data import open_dataset

    manifest = open_dataset(folder).manifest
    table = Table("split", "documents", "tokens", "bytes", "bytes/token", "shards")
    for column in table.columns[1:]:
        column.justify = "right"
    for split, info in manifest.splits.items():
        ratio = f"{info.bytes / info.tokens:.2f}"
        table.add_row(split, f"{info.documents:,}", f"{info.tokens:,}", f"{info.bytes:,}", ratio, str(len(info.shards)))
    tokenizer = manifest.tokenizer
    console = Console(soft_wrap=True)
    console.print(f"{folder}: {manifest.name}{', synthetic' if manifest.synthetic else ''}", markup=False)
    console.print(table)
    console.print(f"split: {manifest.corpus.get('split', 'unknown')}", markup=False)
    console.print(
        f"tokenizer: {tokenizer['kind']}, {tokenizer['vocab_size']} ids, {str(tokenizer['content_hash'])[:12]}; "
        f"stored as {manifest.dtype}"
    )
    if manifest.floor is not None:
        console.print(f"entropy floor: {manifest.floor:.4f} bits per byte")
