"""A Hugging Face directory as official tensors, one at a time: the seam between checkpoints on disk and GGUF."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from moonlet.hub.checkpoint import checkpoint_of, empty_model
from moonlet.hub.read import fill, stored_whole
from moonlet.hub.source import DTYPES, open_source


def folder_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Official name and values of every tensor in `folder`, in the order of its files; one is in memory at a time.

    FP8, INT4 and MXFP4 are multiplied out, in fp32; everything else is in the dtype of the files.

    Raises:
        FileNotFoundError: no weights.
        ValueError: what does not fit, all of it, before the first tensor; or a tensor that is not finite.
    """
    checkpoint = checkpoint_of(open_source(folder))
    stored = stored_whole(checkpoint, empty_model(checkpoint))
    for name, one in sorted(stored.items(), key=lambda item: min((e.path, e.begin) for e in item[1].parts.values())):
        plain = next(iter(one.parts.values())).dtype
        values = torch.empty(one.shape, dtype=DTYPES[plain] if one.scheme is None else torch.float32)
        if not fill(one, values):
            raise ValueError(f"{folder}: {one.name} holds NaN or infinite numbers")
        yield name, values
