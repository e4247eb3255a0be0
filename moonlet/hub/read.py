"""Reading a Hugging Face directory: config.json, and safetensors files with or without an index.

Everything that headers can tell is checked against the model's shapes before any weight is read, then the scales of
quantised weights, and all that is wrong is said at once. Then one tensor after the other, in the order of the files,
goes to the place its parameter has in memory; quantised ones are multiplied out on the way, a few rows at a time. So
reading takes the model and a few MiB (`source.py`), whatever the format.

Only safetensors are read: no pickles, no code from a model's folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from moonlet.hub.checkpoint import Checkpoint, Stored, checkpoint_of, empty_model, match
from moonlet.hub.finite import is_finite
from moonlet.hub.names import EMBEDDING, HEAD, stays_fp32
from moonlet.hub.packed_reading import experts_scheme, fill_part, jobs_of
from moonlet.hub.source import DTYPES, open_source, pieces, read_into, refuse
from moonlet.model.model import CausalLM
from moonlet.model.packed import pack_experts
from moonlet.ops.formats import fp8, int4, mxfp4

# Copying from the system's cache of files, and multiplying out, take more than one core; more than a few only wait.
_WORKERS = 4
_CODES = {"fp8": "weight", "int4": "weight_packed", "mxfp4": "weight_packed"}


def read_model(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    notice: Callable[[str], object] | None = None,
    packed: bool = True,
) -> CausalLM:
    """Read the model in `folder`, its weights in any format that `checkpoint.py` lists.

    Args:
        folder: a Hugging Face directory.
        device: where the weights shall lie.
        dtype: what they are converted to; None keeps the dtype of the embedding's file. The routers' correction bias
            and the decay rates of KDA are fp32 either way.
        notice: called with each line a person should know, as that a vision tower is not read.
        packed: whether routed experts that are stored in few bits stay so in memory; such a model generates, and cannot
            be trained.

    Raises:
        FileNotFoundError: no config.json or no weights.
        ValueError: missing, extra or mis-shaped tensors, a dtype this reader does not know, a damaged file, or numbers
            that are not finite.
    """
    checkpoint = checkpoint_of(open_source(folder))
    model = empty_model(checkpoint)
    stored = stored_whole(checkpoint, model)
    for line in checkpoint.notices() if notice is not None else ():
        notice(line)  # type: ignore[misc]
    scheme = experts_scheme(stored) if packed else None
    if scheme is not None:
        pack_experts(model, scheme)
    give_memory(model, device, dtype or DTYPES[checkpoint.embedding_dtype])
    fill_model(model, checkpoint, stored)
    return model


def stored_whole(checkpoint: Checkpoint, model: CausalLM) -> dict[str, Stored]:
    """How each tensor of `model`, which needs no memory, is stored, where nothing is wrong with any of them.

    Raises:
        ValueError: all that headers show to be wrong; or else the small tensors beside quantised weights.
    """
    stored, problems = match(checkpoint, model)
    refuse(checkpoint.source.folder, problems)
    refuse(checkpoint.source.folder, list(wrong_values(checkpoint, stored)))
    return stored


def give_memory(model: CausalLM, device: str | torch.device, dtype: torch.dtype) -> None:
    """Put uninitialised parameters and zeroed buffers in the place of `model`'s, which have no memory.

    Buffers keep their dtype (biases of routers, packed weights and their scales), parameters that stay fp32 are fp32.
    `to_empty` would do the same, but to find the layout of a tensor without memory PyTorch imports a computer algebra
    system: seconds, and 40 MB.
    """
    for prefix, module in model.named_modules():
        for name, value in module.named_parameters(recurse=False):
            kind = torch.float32 if stays_fp32(f"{prefix}.{name}") else dtype
            memory = torch.empty(value.shape, dtype=kind, device=device)
            setattr(module, name, nn.Parameter(memory, requires_grad=value.requires_grad))
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros(value.shape, dtype=value.dtype, device=device))


def fill_model(model: CausalLM, checkpoint: Checkpoint, stored: Mapping[str, Stored]) -> None:
    """Read every tensor of `model`'s state into the memory it has.

    Raises:
        ValueError: tensors that hold NaN or infinite numbers.
    """
    jobs = list(jobs_of(model, checkpoint.layout, stored))
    # In the order of the files, which disks read fastest.
    jobs.sort(key=lambda job: [(entry.path, entry.begin) for entry in job[0].parts.values()][:1])
    with ThreadPoolExecutor(min(_WORKERS, os.cpu_count() or 1)) as pool:
        finite = list(pool.map(lambda job: fill_part(*job) if job[1] else fill(job[0], job[2]), jobs))
    bad = [stored.name for (stored, _, _), good in zip(jobs, finite, strict=True) if not good]
    refuse(checkpoint.source.folder, [f"{name} holds NaN or infinite numbers" for name in sorted(bad)])


def fill(stored: Stored, destination: Tensor) -> bool:
    """Read one tensor of a model into `destination`, of its shape, on any device and in any dtype.

    Returns:
        Whether all its numbers are finite.
    """
    parts = stored.parts
    codes = next(iter(parts.values())) if stored.scheme is None else parts[_CODES[stored.scheme]]
    if stored.scheme is None:
        return read_into(codes, destination)
    finite = True
    scales = parts["weight_scale_inv" if stored.scheme == "fp8" else "weight_scale"]
    scale = torch.empty(scales.shape, dtype=DTYPES[scales.dtype])
    read_into(scales, scale)
    scale = scale.to(destination.device)
    # A block of FP8's scales goes over 128 rows, so a piece begins where a block does.
    for rows, piece in pieces(codes, multiple=fp8.BLOCK if stored.scheme == "fp8" else 1):
        out, piece = destination[rows], piece.to(destination.device)
        if stored.scheme == "fp8":
            fp8.dequantize(piece, scale[rows.start // fp8.BLOCK : -(-rows.stop // fp8.BLOCK)], out=out)
        elif stored.scheme == "int4":
            int4.dequantize(piece, scale[rows], out.shape, group=stored.group, out=out)
        else:
            mxfp4.dequantize(piece, scale[rows].view(torch.uint8), out=out)
        finite = is_finite(out) and finite
    return finite


def wrong_values(checkpoint: Checkpoint, stored: Mapping[str, Stored]) -> Iterator[str]:
    """What is wrong beyond headers and yet known from a small part of the bytes: scales, shapes, a head given twice."""
    yield from _wrong_scales(stored.values())
    yield from _differing_head(checkpoint)


def _wrong_scales(stored: Iterable[Stored]) -> Iterator[str]:
    """What is wrong with the small tensors beside quantised weights, judged by their values."""
    for weight in stored:
        for part, entry in weight.parts.items() if weight.scheme else ():
            if part == "weight_shape":
                found = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
                read_into(entry, found)
                if tuple(found.tolist()) != weight.shape:
                    yield f"{entry.name} says {found.tolist()}, expected {list(weight.shape)}"
            elif part.startswith("weight_scale") and not all(_finite_scale(piece) for _, piece in pieces(entry)):
                yield f"{entry.name} holds NaN or infinite scales"


def _finite_scale(scale: Tensor) -> bool:
    # MXFP4's scales are bytes that stand for powers of two.
    return is_finite(scale.view(torch.float8_e8m0fnu) if scale.dtype == torch.uint8 else scale)


def _differing_head(checkpoint: Checkpoint) -> Iterator[str]:
    """Some files hold a tied matrix twice; it must be the same one."""
    tensors = checkpoint.tensors
    if not checkpoint.config.tie_word_embeddings or HEAD not in tensors:
        return
    embedding, head = tensors[EMBEDDING], tensors[HEAD]
    same = (embedding.shape, embedding.dtype) == (head.shape, head.dtype)
    if not same or not all(torch.equal(a, b) for (_, a), (_, b) in zip(pieces(embedding), pieces(head), strict=True)):
        yield f"tie_word_embeddings is true and {HEAD} differs from {EMBEDDING}; one of the two is wrong"
