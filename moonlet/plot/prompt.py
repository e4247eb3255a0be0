"""A text as a run's model reads it: its tokens, what attends to what, and what the model expects next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moonlet.folder import load
from moonlet.model.model import CausalLM
from moonlet.model.observe import Observation, observe
from moonlet.plot.history import History
from moonlet.text.tokenizer import Tokenizer

# Beyond this a map of attention has cells too small to see.
MAX_TOKENS = 32
CANDIDATES = 10


@dataclass(frozen=True)
class Candidate:
    """A token the model may go on with, as people see it, and its probability."""

    token: int
    label: str
    probability: float


@dataclass(frozen=True)
class Reading:
    """What a model made of a text of T tokens, [BOS] included.

    `ids` are the tokens and `labels` what people see of them; `expected[t]` the likeliest tokens after token t;
    `surprise[t]` the bits that token t + 1 cost, T - 1 of them; `cut` whether the text went on.
    """

    ids: list[int]
    labels: list[str]
    expected: list[list[Candidate]]
    surprise: list[float]
    seen: Observation
    cut: bool

    @property
    def attention(self) -> dict[int, Tensor]:
        """fp32 [H, T, T] a layer."""
        return self.seen.attention


def read_prompt(history: History, prompt: str | None) -> Reading:
    """Let the run's newest model read `prompt`, its first MAX_TOKENS tokens.

    Args:
        prompt: None takes the run's own newest sample of its first prompt.

    Raises:
        FileNotFoundError: the run has no checkpoint yet.
        ValueError: the prompt is empty.
    """
    model, tokenizer = load(history.run.path)
    return read_text(model, tokenizer, default_prompt(history) if prompt is None else prompt)


def read_text(model: CausalLM, tokenizer: Tokenizer, prompt: str) -> Reading:
    """`read_prompt` with a model in hand."""
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    if len(ids) < 2:
        raise ValueError("the prompt is empty; give --prompt some text")
    limit = min(MAX_TOKENS, model.config.context_limit)
    cut = len(ids) > limit
    ids = ids[:limit]
    seen = observe(model, torch.tensor(ids, device=model.device))
    log_p = seen.logits[:, : tokenizer.vocab_size].log_softmax(-1)  # (T, vocabulary)
    best = log_p.topk(min(CANDIDATES, log_p.shape[1]))
    expected = [
        [Candidate(i, token_label(tokenizer, i), math.exp(p)) for i, p in zip(row, values, strict=True)]
        for row, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    surprise = [-log_p[t, ids[t + 1]].item() / math.log(2) for t in range(len(ids) - 1)]
    return Reading(ids, [token_label(tokenizer, i) for i in ids], expected, surprise, seen, cut)


def default_prompt(history: History) -> str:
    """The newest sample of the first prompt: a text in the model's own words; without samples the prompt alone."""
    first = next(iter(history.recipe.prompts), None) or "Once upon a time"
    told = [r["text"] for r in history.samples if r.get("prompt") == first and r.get("text")]
    return str(told[-1]) if told else first


def token_label(tokenizer: Tokenizer, token: int) -> str:
    """A token as people see it inside a sentence: spaces visible, the bytes of half a character in hexadecimal."""
    # Behind a letter, since kinds that write whole words drop the space and raise the first letter of a text.
    before = tokenizer.encode("a")[-1:]
    start, text = tokenizer.decode(before), tokenizer.decode([*before, token])
    text = text[len(start) :] if text.startswith(start) else tokenizer.decode([token])
    if "\ufffd" in text:
        return "".join(f"\\x{byte:02x}" for byte in tokenizer.decode_bytes([token]))
    return visible(text)


def visible(text: str) -> str:
    """`text` with a mark for each space, tab, line end and other control."""
    marks = {" ": "·", "\n": "↵", "\t": "→", "\r": "←"}
    return "".join(marks.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text) or "∅"


def has_model(path: Path) -> bool:
    """Whether a run folder holds a checkpoint or a finished model to read with."""
    return any(path.glob("checkpoints/step-*/config.json")) or (path / "model" / "config.json").is_file()
