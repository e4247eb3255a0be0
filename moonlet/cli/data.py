"""`moonlet data`: make or download text, prepare any text for training, look at what was prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moonlet.cli.bytebar import ByteBar

app = typer.Typer(
    help="Make, download, prepare and look at training text.",
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
    questions: Annotated[bool, typer.Option("--questions", help="Each story with its questions and answers.")] = False,
) -> None:
    """Tell stories of the built-in story world (synthetic text with a known entropy floor)."""
    from rich.console import Console

    from moonlet.data import StoryCorpus
    from moonlet.data.corpus import write_documents

    console = Console(soft_wrap=True)
    corpus = StoryCorpus(megabytes=megabytes, valid_stories=valid_stories, seed=seed, questions=questions)
    for split, path in (("train", out), ("valid", valid)):
        if path is not None:
            count, size = write_documents(corpus.documents(split), path)
            console.print(
                f"{path}: {count:,} {split} stories, {size:,} bytes, synthetic (story world, seed {seed})", markup=False
            )
    console.print(f"entropy floor: {corpus.floor():.4f} bits per byte over {valid_stories:,} validation stories")


@app.command(epilog="Example: moonlet data tinystories --stories 100000 --out tinystories.txt")
def tinystories(
    out: Annotated[Path, typer.Option(help="Text file to write, documents between <|endoftext|> lines.")],
    stories: Annotated[int, typer.Option(help="Number of stories; 0 takes all of the split.")] = 0,
    split: Annotated[
        str, typer.Option(help="'train' (2.7 million stories, 2.2 GB) or 'valid' (27,630, 22 MB).")
    ] = "train",
) -> None:
    """Download TinyStories, as much as is needed, from the Hugging Face hub and write it as text.

    The download is kept in MOONLET_CACHE (or ~/.cache/moonlet), goes on where it was interrupted, and is checked
    against the hub's sha256 when it is whole. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured.
    """
    from rich.console import Console

    from moonlet.data.corpus import write_documents
    from moonlet.data.tinystories import TinyStoriesCorpus

    console = Console(soft_wrap=True)
    with ByteBar(console) as bar:
        wanted = (stories, 0) if split == "train" else (0, stories)
        corpus = TinyStoriesCorpus(*wanted, progress=bar.show)
        count, size = write_documents(corpus.documents(split), out)
    console.print(f"{out}: {count:,} {split} stories of TinyStories, {size:,} bytes", markup=False)
    remote = corpus.remote(split)
    if remote is not None:
        whole = "checked" if corpus.is_whole(split) else f"of the whole file, of which the first {count:,} stories came"
        console.print(f"sha256 {remote.digest or 'not named by the server'} ({whole})", highlight=False)


@app.command(
    epilog="Example: moonlet data prepare stories.txt --tokenizer tokenizers/stories-2048 --out prepared/stories"
)
def prepare(
    tokenizer: Annotated[str, typer.Option(help="Tokenizer folder, or 'byte' for the byte tokenizer.")],
    out: Annotated[Path, typer.Option(help="Folder for the token shards.")],
    path: Annotated[
        list[str] | None,
        typer.Argument(help="File, folder or quoted glob of .txt, .jsonl or .parquet.", show_default=False),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="'text'; 'tinystories', from the hub; or 'story', the built-in world.")
    ] = "text",
    field: Annotated[str, typer.Option(help="Field of a .jsonl line, column of a .parquet file.")] = "text",
    split_by: Annotated[
        str, typer.Option(help="Documents of a .txt file: by 'separator' (<|endoftext|> lines) or by 'file'.")
    ] = "separator",
    stories: Annotated[int, typer.Option(help="Read only so many documents of the training text; 0: all.")] = 0,
    megabytes: Annotated[float, typer.Option(help="Size of the training text, with --kind story.")] = 10.0,
    valid: Annotated[str, typer.Option(help="Validation text; without it a share of PATH is used.")] = "",
    valid_fraction: Annotated[float, typer.Option(help="Share of PATH for validation.")] = 0.1,
    workers: Annotated[int, typer.Option(help="Processes that encode; 0: one a core.")] = 0,
) -> None:
    """Turn text into memory-mapped token shards with a manifest; an interrupted preparation goes on where it was."""
    from rich.console import Console

    from moonlet.config.sections import DataSettings
    from moonlet.data.expected import expected_bytes
    from moonlet.data.open import open_corpus
    from moonlet.data.prepare import prepare as prepare_corpus
    from moonlet.text import ByteTokenizer, load

    if len(path or []) > 1:
        raise ValueError(f"{len(path or [])} paths; give one, a folder, or a pattern in quotes such as 'texts/*.txt'")
    settings = DataSettings(
        kind=kind,
        path=path[0] if path else "",
        valid=valid,
        valid_fraction=valid_fraction,
        field=field,
        split_by=split_by,
        stories=stories,
        megabytes=megabytes,
    )
    encoder = ByteTokenizer() if tokenizer == "byte" else load(Path(tokenizer))
    with ByteBar(Console(soft_wrap=True)) as bar:
        corpus = open_corpus(settings, bar.show)
        totals: dict[str, int | None] = {}

        def show(split: str, documents: int, size: int) -> None:
            if split not in totals:
                totals[split] = expected_bytes(corpus, split)
            bar.show(f"{split}: {documents:,} documents", size, totals[split])

        prepare_corpus(corpus, encoder, out, progress=show, workers=workers or None)
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
