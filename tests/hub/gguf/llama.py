"""llama.cpp as the oracle of these tests: one file loaded, a text's logits, and greedy continuation.

With a cache and attention in fp32, as benchmarks/llama_peer.py sets them.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moonlet.model.model import CausalLM

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

import llama_peer

needs_gguf = pytest.mark.skipif(not find_spec("gguf"), reason="needs the package gguf")
needs_llama = pytest.mark.skipif(
    not (find_spec("gguf") and find_spec("llama_cpp")), reason="needs the packages gguf and llama-cpp-python"
)


class Llama:
    """One file; a context manager."""

    def __init__(self, file: Path, length: int = 256) -> None:
        self.model = llama_peer.LlamaModel(file, repack=False)
        self.session = llama_peer.LlamaSession(self.model, 1, length, 1, exact=True)
        self.api: Any = self.model.api
        self.vocab = self.api.llama_model_get_vocab(self.model.model)

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()
        self.model.close()

    def logits(self, ids: Sequence[int]) -> Tensor:
        """After the last of `ids`, fp32 [vocabulary]."""
        self.session.clear()
        return torch.from_numpy(self.session.prefill([list(ids)])[0].copy())

    def greedy(self, ids: Sequence[int], tokens: int) -> list[int]:
        """The next `tokens` ids."""
        return self.session.decode([list(ids)], tokens - 1)[0][0]

    def tokenize(self, text: str, special: bool = False, begin: bool = False) -> list[int]:
        """Ids of a text; names of special tokens are found in it, and [BOS] put before it, where asked for."""
        encoded = text.encode("utf-8")
        room = len(encoded) + 16
        ids = (ctypes.c_int32 * room)()
        number = self.api.llama_tokenize(self.vocab, encoded, len(encoded), ids, room, begin, special)
        return list(ids[:number])


@torch.inference_mode()
def greedy(model: CausalLM, ids: Sequence[int], tokens: int) -> list[int]:
    """moonlet's continuation, through its cache."""
    cache = model.new_cache(1, len(ids) + tokens)
    out, given = [], torch.tensor([list(ids)])
    for _ in range(tokens):
        given = model.last_logits(given, cache).argmax(-1, keepdim=True)
        out.append(int(given))
    return out


@torch.inference_mode()
def off_by(model: CausalLM, llama: Llama, ids: Sequence[int]) -> float:
    """The largest difference of logits after `ids`, over the largest logit."""
    want = model(torch.tensor([list(ids)]))[0, -1]
    return float((llama.logits(ids) - want).abs().max() / want.abs().max())


def prompt(length: int, vocab_size: int = 61) -> list[int]:
    """Random ids, the same for the same length."""
    generator = torch.Generator().manual_seed(length)
    ids: list[int] = torch.randint(0, vocab_size, (length,), generator=generator).tolist()
    return ids
