"""`moonlet tokenizer`: train one, encode with one, look at one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Train and look at tokenizers.",
    no_args_is_help=True,
    epilog="Example: moonlet tokenizer train stories.txt --vocab-size 2048 --out tokenizers/stories",
)

_Folder = Annotated[Path, typer.Argument(help="Tokenizer folder.")]


@app.command(epilog="Example: moonlet tokenizer train stories.txt --vocab-size 2048 --out tokenizers/stories-2048")
def train(
    file: Annotated[Path, typer.Argument(help="UTF-8 text, documents between <|endoftext|> lines.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    vocab_size: Annotated[int, typer.Option(help="Number of ids, special tokens included.")] = 2048,
) -> None:
    """Train a byte-level BPE on nine tenths of a text file and measure it on the rest."""
    from rich.console import Console

    from moonlet.data import TextFileCorpus
    from moonlet.text import train_bpe

    console = Console(soft_wrap=True)
    corpus = TextFileCorpus(file)
    tokenizer = train_bpe(corpus.documents("train"), vocab_size)
    tokenizer.save(out)
    held_out = list(corpus.documents("valid"))
    tokens = sum(map(len, tokenizer.encode_batch(held_out)))
    size = sum(len(text.encode("utf-8")) for text in held_out)
    console.print(f"{out}: bpe, {tokenizer.vocab_size} ids, {tokenizer.content_hash()[:12]}", markup=False)
    console.print(f"{size / tokens:.3f} bytes per token on {len(held_out):,} documents it was not trained on")


@app.command(epilog='Example: moonlet tokenizer encode tokenizers/stories-2048 "Once upon a time"')
def encode(
    folder: _Folder,
    text: Annotated[str, typer.Argument(help="Text to encode.")],
    allow_special: Annotated[bool, typer.Option("--allow-special", help="Read [BOS] and the like as tokens.")] = False,
) -> None:
    """Print the ids of a text, and the piece of text behind each."""
    from rich.console import Console

    from moonlet.text import load

    tokenizer = load(folder)
    ids = tokenizer.encode(text, allow_special=allow_special)
    console = Console(soft_wrap=True)
    console.print(" ".join(map(str, ids)), highlight=False)
    # A token may be half a character, which only its bytes can show.
    pieces = [tokenizer.decode_bytes([i]) for i in ids]
    console.print(" ".join(repr(piece)[1:] for piece in pieces), markup=False, highlight=False)
    console.print(f"{len(ids)} tokens, {len(text.encode('utf-8'))} bytes")


@app.command(epilog="Example: moonlet tokenizer info tokenizers/stories-2048")
def info(folder: _Folder) -> None:
    """Print kind, size, hash and special tokens, and the longest tokens."""
    from rich.console import Console

    from moonlet.text import load

    tokenizer = load(folder)
    console = Console(soft_wrap=True)
    console.print(f"{folder}: {tokenizer.kind}, {tokenizer.vocab_size} ids", markup=False)
    console.print(f"content hash {tokenizer.content_hash()}", highlight=False)
    specials = ", ".join(f"{name} {index}" for name, index in tokenizer.specials.items())
    console.print(f"special tokens: {specials}", markup=False, highlight=False)
    ordinary = [tokenizer.decode_bytes([i]) for i in range(len(tokenizer.specials), tokenizer.vocab_size)]
    longest = sorted(ordinary, key=len, reverse=True)[:10]
    console.print("longest tokens: " + " ".join(repr(token)[1:] for token in longest), markup=False, highlight=False)
