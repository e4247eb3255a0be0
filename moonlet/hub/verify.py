"""Whether a folder is what it says it is: every byte read once, nothing kept.

| check | what must hold |
|---|---|
| config | config.json is one this package computes |
| headers | each file's tensors fill it exactly, and the index agrees with the files |
| shapes | the tensors are those the configuration describes, none missing, none left over |
| scales | the parts of quantised weights belong together, and their scales are finite |
| values | no tensor holds NaN or an infinite number |
| hashes | each file has the SHA-256 (or git's SHA-1) that the folder says it has, where it says so |
| tokenizer | there is one, and the model has an id for each of its tokens |

A file is hashed and looked through in the same pass, so a terabyte is read once, in pieces of a few MiB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from moonlet import text
from moonlet.config.json_file import parse_json, shown
from moonlet.hub.checkpoint import Checkpoint, checkpoint_of, empty_model, match
from moonlet.hub.finite import is_finite
from moonlet.hub.header import Entry
from moonlet.hub.read import wrong_values
from moonlet.hub.source import DTYPES, scan
from moonlet.hub.sums import Sum, expected_sums

_PIECE_BYTES = 4 << 20
_MAX_SHOWN = 8
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tiktoken.model", "tokenizer.model")
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Check:
    """One check's outcome: `ok` None where there was nothing to check it by."""

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class FileSum:
    """One file's size and SHA-256; `against` is who says what it should be, `ok` None where nobody does."""

    name: str
    nbytes: int
    sha256: str
    against: str = ""
    ok: bool | None = None


@dataclass(frozen=True)
class Verdict:
    """All checks of a folder, and its files."""

    checks: tuple[Check, ...]
    files: tuple[FileSum, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.ok is not False for check in self.checks)


def verify(folder: str | Path, progress: Progress | None = None) -> Verdict:
    """Check the model in `folder`.

    Args:
        folder: a Hugging Face directory.
        progress: called with the bytes of each piece of a file that was read.

    Raises:
        FileNotFoundError: no such folder, no config.json, or no weights.
        ValueError: a folder of pickles, which are not read at all.
    """
    folder = Path(folder)
    source = scan(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no config.json in {folder}")
    files_said = "one file" if len(source.files) == 1 else f"{len(source.files):,} files"
    checks = [_check("headers", source.problems, f"{len(source.tensors):,} tensors in {files_said}")]
    checkpoint = None
    try:
        checkpoint = checkpoint_of(source)
        checks.insert(0, Check("config", True, _about(checkpoint)))
    except ValueError as error:
        checks.insert(0, Check("config", False, _plain(error, folder)))
    checks += _against_config(checkpoint)
    sums, wrong_lists = expected_sums(folder)
    files, bad = [], []
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        entries = [entry for entry in source.tensors.values() if entry.path == path]
        done, found = _read_file(path, entries, sums.pop(path.name, []), progress)
        files.append(done)
        bad += found
    checks.append(_check("values", [f"{shown(name)} is not finite" for name in bad], "all finite"))
    wrong = [f"{file.name} differs from {file.against}" for file in files if file.ok is False]
    wrong += [f"{shown(name)} is named by {sums[name][0].where} and missing" for name in sorted(sums)]
    known = sum(file.ok is not None for file in files)
    hashes = _check("hashes", wrong + wrong_lists, f"{known} of {len(files)} files as their sums say")
    checks.append(hashes if known or not hashes.ok else Check("hashes", None, "no sums in the folder to compare with"))
    checks.append(_tokenizer(folder, checkpoint))
    return Verdict(tuple(checks), tuple(files))


def _check(name: str, problems: list[str], detail: str) -> Check:
    """A check that fails where there are problems, of which the first are told."""
    if not problems:
        return Check(name, True, detail)
    more = f" (and {len(problems) - _MAX_SHOWN} more)" if len(problems) > _MAX_SHOWN else ""
    return Check(name, False, "; ".join(problems[:_MAX_SHOWN]) + more)


def _plain(error: Exception, folder: Path) -> str:
    """An error's line without the folder, which everybody knows."""
    return str(error).removeprefix(f"{folder}: ").replace(f"{folder}/", "")


def _about(checkpoint: Checkpoint) -> str:
    config, method = checkpoint.config, checkpoint.quantization.method
    around = f"{checkpoint.wrapper} around it, " if checkpoint.wrapper else ""
    return f"{around}{config.num_hidden_layers} layers of width {config.hidden_size:,}, {method or 'not quantised'}"


def _against_config(checkpoint: Checkpoint | None) -> list[Check]:
    """What headers and scales say beside the configuration."""
    if checkpoint is None:
        return [Check(name, None, "unknown without the configuration") for name in ("shapes", "scales")]
    folder = checkpoint.source.folder
    try:
        stored, problems = match(checkpoint, empty_model(checkpoint))
    except ValueError as error:
        return [Check("shapes", False, _plain(error, folder)), Check("scales", None, "unknown without shapes")]
    left = sum(len(entries) for entries in checkpoint.skipped.values())
    beside = f", {left:,} left out by design" if left else ""
    shapes = _check("shapes", problems, f"{len(stored):,} weights as the configuration says{beside}")
    quantised = sum(weight.scheme is not None for weight in stored.values())
    if not quantised:
        return [shapes, Check("scales", None, "no weight is quantised")]
    if checkpoint.source.problems or problems:
        return [shapes, Check("scales", None, "unknown before headers and shapes are right")]
    return [shapes, _check("scales", list(wrong_values(checkpoint, stored)), f"{quantised:,} quantised weights")]


def _read_file(
    path: Path, entries: list[Entry], sums: list[Sum], progress: Progress | None
) -> tuple[FileSum, list[str]]:
    """Hash a file and look through its tensors in one pass; the names of those that are not finite."""
    size = path.stat().st_size
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    git = any(len(expected.digest) == 40 for expected in sums)
    bad: list[str] = []
    queue = sorted(entries, key=lambda entry: entry.begin)[::-1]
    entry: Entry | None = None
    with path.open("rb", buffering=0) as file:
        position = 0
        while position < size:
            # Up to the next tensor, or through the tensor at hand, in whole numbers of it. One that begins within
            # another is not looked through: the headers are wrong, and were said to be.
            if entry is not None and position >= entry.end:
                entry = None
            while entry is None and queue and (position > queue[-1].begin or queue[-1].nbytes == 0):
                queue.pop()
            if entry is None and queue and position == queue[-1].begin:
                entry = queue.pop()
            end = entry.end if entry else queue[-1].begin if queue else size
            piece = bytearray(min(end - position, _PIECE_BYTES))
            got = file.readinto(piece)
            if not got:
                break
            # A read may end within a number; the rest of it is read at once.
            while got < len(piece) and (more := file.readinto(memoryview(piece)[got:])):
                got += more
            sha256.update(piece[:got])
            if git:
                sha1.update(piece[:got])
            position += got
            if progress is not None:
                progress(got)
            if entry and got == len(piece) and not is_finite(torch.frombuffer(piece, dtype=DTYPES[entry.dtype])):
                bad.append(entry.name)
    digests = {64: sha256.hexdigest(), 40: sha1.hexdigest()}
    differing = [expected.where for expected in sums if digests[len(expected.digest)] != expected.digest]
    against = ", ".join(dict.fromkeys(differing or [expected.where for expected in sums]))
    return FileSum(path.name, size, digests[64], against, not differing if sums else None), list(dict.fromkeys(bad))


def _tokenizer(folder: Path, checkpoint: Checkpoint | None) -> Check:
    """Whether there is a tokenizer, and the model has an id for each of its tokens."""
    present = [name for name in _TOKENIZERS if (folder / name).is_file()]
    if not present:
        return Check("tokenizer", False, f"none of {', '.join(_TOKENIZERS)} is there")
    try:
        size, what = text.load(folder).vocab_size, "ids"
    except (ValueError, OSError) as error:
        # What another program wrote may be right and yet not be computed here; its size is known all the same.
        found = _foreign_size(folder)
        if found is None:
            return Check("tokenizer", False, _plain(error, folder))
        size, what = found, "ids; it is not one that moonlet runs"
    if checkpoint is None:
        return Check("tokenizer", None, f"{size:,} {what}")
    ids = checkpoint.config.vocab_size
    if size > ids:
        return Check("tokenizer", False, f"{size:,} {what}, and the model has {ids:,}")
    return Check("tokenizer", True, f"{size:,} {what}, of the model's {ids:,}")


def _foreign_size(folder: Path) -> int | None:
    """One more than the largest id in tokenizer.json, or None where there is no such file or it is damaged."""
    try:
        data = parse_json((folder / "tokenizer.json").read_bytes())
        vocab = data["model"]["vocab"]
        ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
        ids += [token["id"] for token in data.get("added_tokens") or ()]
        return 1 + max(int(number) for number in ids)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
