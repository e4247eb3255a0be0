"""Turn a corpus into token shards: every document as [BOS] ids [EOS], one after another, little-endian.

    train-00000.bin ...  train-documents.bin  train-bytes.bin  (the same for valid)  tokenizer/  manifest.json

The manifest comes last. A folder without one was interrupted: journal.json says how far it came, and the same
preparation goes on from there, to the same bytes. A folder whose manifest names the same corpus and tokenizer is used
as it is. A folder that holds another data set is never overwritten: that is an error, and `folder_name` names a folder
for each pair of corpus and tokenizer, for callers who want none.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

from moonlet.data.corpus import SPLITS, Corpus
from moonlet.data.dataset import TOKENIZER_FOLDER, open_dataset
from moonlet.data.encode import CannotEncode, dtype_for, grouped
from moonlet.data.journal import Journal
from moonlet.data.manifest import (
    MANIFEST_FILE,
    Manifest,
    SplitInfo,
    describe_tokenizer,
    same_data,
    without_paths,
)
from moonlet.data.pool import encode_all
from moonlet.data.shards import SplitWriter
from moonlet.text.atomic import sync_folder
from moonlet.text.tokenizer import Tokenizer, hash_content

SHARD_TOKENS = 2**26
# The work that a kill may cost. Syncing to disk takes some hundredths of a second.
_JOURNAL_SECONDS = 5.0

Progress = Callable[[str, int, int], None]


def prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    shard_tokens: int = SHARD_TOKENS,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Manifest:
    """Prepare `corpus` into `folder`, or go on with that, or find it prepared there.

    Args:
        corpus: the documents, streamed: memory does not grow with their number.
        tokenizer: their encoding; ids below 65,536 are stored as uint16, else uint32. Special names in a document's
            text stay text.
        folder: made when missing. Safe against a second process that prepares the same folder: one waits.
        shard_tokens: tokens a shard file.
        progress: called with (split, documents so far, UTF-8 bytes so far) after each group of documents;
            `moonlet.data.expected.expected_bytes` tells about how many bytes there will be.
        workers: processes that encode; None takes one a core. The bytes are the same for any number.

    Returns:
        The manifest.

    Raises:
        ValueError: the folder holds another data set or a damaged one, a split has no documents, or a document cannot
            be encoded.
    """
    if shard_tokens <= 0:
        raise ValueError(f"shard_tokens is {shard_tokens}; it must be above 0")
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    from filelock import FileLock

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".prepare.lock"):
        facts = corpus.describe()
        if (folder / MANIFEST_FILE).exists():
            return _reuse(folder, facts, tokenizer)
        dtype = dtype_for(tokenizer.vocab_size)
        job = {
            "corpus": without_paths(facts),
            "tokenizer": describe_tokenizer(tokenizer),
            "dtype": dtype,
            "shard_tokens": shard_tokens,
        }
        journal = Journal(folder, job)
        try:
            splits = {
                split: _prepare_split(corpus, split, tokenizer, folder, dtype, shard_tokens, journal, progress, workers)
                for split in SPLITS
            }
        except CannotEncode as error:
            raise ValueError(f"{corpus.name}: {error}") from None
        tokenizer.save(folder / TOKENIZER_FOLDER)
        manifest = Manifest(
            name=corpus.name,
            synthetic=corpus.synthetic,
            corpus=facts,
            tokenizer=describe_tokenizer(tokenizer),
            dtype=dtype,
            floor=corpus.floor(),
            splits=splits,
        )
        sync_folder(folder)
        manifest.write(folder)
        journal.remove()
        return open_dataset(folder).manifest


def folder_name(corpus: Corpus, tokenizer: Tokenizer) -> str:
    """A folder name of its own for each pair of corpus and tokenizer: "tinystories-bpe-1f3a..."."""
    facts = without_paths(corpus.describe())
    plain = re.sub(r"[^a-z0-9]+", "-", Path(corpus.name).stem.lower()).strip("-") or "text"
    return f"{plain}-{tokenizer.kind}-{hash_content({'corpus': facts, 'tokenizer': tokenizer.content_hash()})[:12]}"


def _reuse(folder: Path, facts: dict[str, object], tokenizer: Tokenizer) -> Manifest:
    manifest = open_dataset(folder).manifest
    if not same_data(manifest, facts, tokenizer):
        raise ValueError(
            f"{folder} holds another data set ({manifest.name}, {manifest.tokenizer.get('kind')} tokenizer "
            f"{str(manifest.tokenizer.get('content_hash'))[:12]}, not this corpus with {tokenizer.kind} "
            f"{tokenizer.content_hash()[:12]}); give another folder, or delete this one"
        )
    return manifest


def _prepare_split(
    corpus: Corpus,
    split: str,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: str,
    shard_tokens: int,
    journal: Journal,
    progress: Progress | None,
    workers: int | None,
) -> SplitInfo:
    reached = journal.reached[split]
    with SplitWriter(folder, split, dtype, shard_tokens, reached) as writer:
        if reached.done:
            return writer.info()
        # Reading is fast beside encoding, so what was done is read again rather than sought.
        left = islice(corpus.documents(split), reached.documents, None)
        noted = time.monotonic()
        with closing(encode_all(tokenizer, grouped(left), dtype, workers)) as encoded:
            for group in encoded:
                writer.write(group)
                if progress is not None:
                    progress(split, writer.documents, writer.bytes)
                if time.monotonic() - noted >= _JOURNAL_SECONDS:
                    journal.write(split, writer.sync())
                    noted = time.monotonic()
        if writer.documents == 0:
            raise ValueError(f"{corpus.name}: no documents in the {split!r} split; give more text or another split")
        journal.write(split, writer.finish())
        return writer.info()
