"""Continuing texts: read the prompts, then decode all of them together, a token a step.

A prompt's text does not depend on its company: it draws with a random stream of its own (`sampler.Sampler`),
attends to its own cache row, and decodes to the same bits as alone. The native step (`native_step.py`) does that at
full speed and reads short prompts too, several at once. PyTorch's (`step.py`) has to take row after row for it; without
`exact` its rows share each product, at 16 rows three times as fast, but a text may then part from its lone self where
two tokens or two experts tie to the precision of the arithmetic, which is rare in fp32 and common in bf16.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from moonlet.generate.decoding import new_step
from moonlet.generate.native_step import NativeStep
from moonlet.generate.reading import PREFILL_CHUNK, not_training
from moonlet.generate.request import Request
from moonlet.generate.sample import SamplingParams
from moonlet.generate.sampler import Drawn, Sampler, draw_all
from moonlet.generate.step import Step
from moonlet.generate.text import TextStream
from moonlet.model.cache import Cache
from moonlet.model.model import CausalLM
from moonlet.text import Tokenizer

OnText = Callable[[int, str], None]


@dataclass(frozen=True)
class Completion:
    """What was made of one prompt."""

    prompt: str
    text: str
    """The continuation alone, without the stop string."""
    token_ids: tuple[int, ...]
    """The tokens drawn, without [EOS]; on a stop string, up to the token that completed it."""
    finish_reason: Literal["stop", "length"]
    """"stop": [EOS] or a stop string; "length": max_new_tokens."""
    drawn: tuple[Drawn, ...] = ()
    """For each token its log-probability and the likeliest ones, where `logprobs` is not None."""


@dataclass
class _Row:
    """A text in the making."""

    index: int
    prompt: list[int]
    stream: TextStream
    sampler: Sampler
    new: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None
    drawn: list[Drawn] = field(default_factory=list)


class Settings(TypedDict, total=False):
    """The settings of SamplingParams by name; `stop` may be a single text."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    unknown: bool
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]
    logprobs: int | None


@overload
def generate(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: str,
    *,
    batch_size: int = ...,
    exact: bool = ...,
    on_text: OnText | None = ...,
    **settings: Unpack[Settings],
) -> str: ...
@overload
def generate(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: list[str] | tuple[str, ...],
    *,
    batch_size: int = ...,
    exact: bool = ...,
    on_text: OnText | None = ...,
    **settings: Unpack[Settings],
) -> list[str]: ...
def generate(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: str | list[str] | tuple[str, ...],
    *,
    batch_size: int = 16,
    exact: bool = True,
    on_text: OnText | None = None,
    **settings: Unpack[Settings],
) -> str | list[str]:
    """Continue texts.

    Args:
        prompts: one text, or several; an empty one starts from nothing.
        batch_size: prompts decoded together at most.
        exact: keep each text to the bit what it is alone; costs speed in batches where the native step does not run.
        on_text: called with (index of the prompt, piece) as text appears.
        settings: of `SamplingParams`: max_new_tokens=256, temperature=0.8, top_k=0, top_p=1.0, min_p=0.0,
            repetition_penalty=1.0, seed=None, stop=(), unknown=False, frequency_penalty=0.0, presence_penalty=0.0,
            logit_bias={}, logprobs=None.

    Returns:
        Prompt and continuation in one string; a list of them if a list was given.

    Raises:
        ValueError: a setting out of range, or a prompt that does not fit the model; see `complete`.
    """
    if isinstance(settings.get("stop"), str):
        settings["stop"] = (str(settings["stop"]),)
    params = SamplingParams(**settings)  # type: ignore[arg-type]
    many = [prompts] if isinstance(prompts, str) else prompts
    done = [c.prompt + c.text for c in complete(model, tokenizer, many, params, batch_size, exact, on_text)]
    return done[0] if isinstance(prompts, str) else done


def complete(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    params: SamplingParams | None = None,
    batch_size: int = 16,
    exact: bool = True,
    on_text: OnText | None = None,
) -> list[Completion]:
    """Continue several texts and say how each ended.

    Raises:
        ValueError: no prompts; prompt and max_new_tokens exceed max_position_embeddings; the tokenizer's vocabulary
            exceeds the model's; a prompt that is no valid Unicode; logits that are not finite.
    """
    params = params or SamplingParams()
    rows = _admit(model, tokenizer, prompts, params, batch_size)
    for index, piece in _run(model, tokenizer, rows, params, batch_size, exact):
        if on_text is not None:
            on_text(index, piece)
    completions = []
    for prompt, row in zip(prompts, rows, strict=True):
        assert row.finish is not None
        drawn = () if params.logprobs is None else tuple(row.drawn)
        completions.append(Completion(prompt, "".join(row.text), tuple(row.new), row.finish, drawn))
    return completions


def stream(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str],
    params: SamplingParams | None = None,
    batch_size: int = 16,
    exact: bool = True,
) -> Iterator[tuple[int, str]]:
    """Yield (index of the prompt, piece of its continuation) as text appears; raises as `complete`, before any piece.

    Stop iterating to stop generating. The weights must not change meanwhile.
    """
    many = [prompts] if isinstance(prompts, str) else prompts
    params = params or SamplingParams()
    rows = _admit(model, tokenizer, many, params, batch_size)
    return _run(model, tokenizer, rows, params, batch_size, exact)


def stream_ids(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    ends: Collection[int],
    params: SamplingParams | None = None,
    exact: bool = True,
) -> Iterator[int]:
    """Yield the tokens drawn after `prompt`, up to and with the first of `ends` or max_new_tokens.

    Args:
        prompt: ids as the model shall read them; nothing is added, so a chat needs no [BOS].
        params: `stop` is about text and must be empty.

    Raises:
        ValueError: as `complete`, before any token.
    """
    params = params or SamplingParams()
    if params.stop:
        raise ValueError("stop texts need text; end a stream of ids by `ends`")
    if not prompt:
        raise ValueError("the prompt is empty; give at least one id")
    _check_fit(model, tokenizer)
    _check_room(model, f"the prompt has {len(prompt)} tokens", len(prompt), params)
    row = _row(model, tokenizer, 0, prompt, params, 0)
    return _run_ids(model, row, ends, params, new_step(model, exact))


def _row(
    model: CausalLM, tokenizer: Tokenizer, index: int, ids: Sequence[int], params: SamplingParams, repeat: int
) -> _Row:
    sampler = Sampler(Request(tuple(ids), params, repeat=repeat), tokenizer, model.config.vocab_size)
    return _Row(index, list(ids), TextStream(tokenizer, params.stop, ids), sampler)


def _run_ids(
    model: CausalLM, row: _Row, ends: Collection[int], params: SamplingParams, step: Step | NativeStep
) -> Iterator[int]:
    cache = model.new_cache(1, len(row.prompt) + params.max_new_tokens)
    logits = _read(model, step, [row.prompt], cache)
    while True:
        (token,) = _draw(logits, [row])
        row.new.append(token)
        yield token
        if token in ends or len(row.new) == params.max_new_tokens:
            return
        logits = step(torch.tensor([token], device=model.device), cache)


def _check_fit(model: CausalLM, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}; "
            "use the tokenizer the model was trained with"
        )


def _check_room(model: CausalLM, what: str, tokens: int, params: SamplingParams) -> None:
    limit = model.config.context_limit
    if tokens + params.max_new_tokens > limit:
        raise ValueError(
            f"{what}; with max_new_tokens {params.max_new_tokens} that is more than the model's {limit} positions: "
            "shorten it or lower max_new_tokens"
        )


def _admit(
    model: CausalLM, tokenizer: Tokenizer, prompts: Sequence[str], params: SamplingParams, batch_size: int
) -> list[_Row]:
    """Check everything that can be checked before the first token, and make each prompt's row."""
    if not prompts:
        raise ValueError('no prompts; give at least one, which may be empty ("")')
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    _check_fit(model, tokenizer)
    # Without a seed the texts of one call still share one, so that each differs from the others by its repeat.
    params = replace(params, seed=secrets.randbits(63)) if params.seed is None else params
    repeats: Counter[tuple[int, ...]] = Counter()
    rows = []
    for index, ids in enumerate(tokenizer.encode_batch(prompts)):
        ids = [tokenizer.bos_id, *ids]
        _check_room(model, f"prompt {index + 1} has {len(ids)} tokens with [BOS]", len(ids), params)
        rows.append(_row(model, tokenizer, index, ids, params, repeats[tuple(ids)]))
        repeats[tuple(ids)] += 1
    return rows


def _run(
    model: CausalLM, tokenizer: Tokenizer, rows: list[_Row], params: SamplingParams, batch_size: int, exact: bool
) -> Iterator[tuple[int, str]]:
    """Finish `rows`, `batch_size` at a time, yielding pieces of text."""
    step, device = new_step(model, exact), model.device
    for first in range(0, len(rows), batch_size):
        live = rows[first : first + batch_size]
        longest = max(len(row.prompt) for row in live)
        # Several texts from one prompt are common (a group to be rewarded, a choice to be offered): it is read once.
        distinct = list(dict.fromkeys(tuple(row.prompt) for row in live))
        cache = model.new_cache(len(distinct), longest + params.max_new_tokens)
        logits = _read(model, step, distinct, cache)
        if len(distinct) < len(live):
            copies = [distinct.index(tuple(row.prompt)) for row in live]
            cache, logits = cache.keep(copies), logits[copies]
        while True:
            for row, token in zip(live, _draw(logits, live), strict=True):
                piece = _take(row, token, params, tokenizer)
                if piece:
                    row.text.append(piece)
                    yield row.index, piece
            keep = [i for i, row in enumerate(live) if row.finish is None]
            if not keep:
                break
            if len(keep) < len(live):
                cache, live = cache.keep(keep), [live[i] for i in keep]
            logits = step(torch.tensor([row.new[-1] for row in live], device=device), cache)


def _read(model: CausalLM, step: Step | NativeStep, prompts: Sequence[Sequence[int]], cache: Cache) -> Tensor:
    """Read prompts into an empty cache. -> logits [B, vocab_size]

    How a prompt is read follows from its own length alone.
    """
    native = step if isinstance(step, NativeStep) else None
    if native is not None and all(native.reads(len(prompt)) for prompt in prompts):
        return native.read(prompts, cache)
    logits = []
    for i, prompt in enumerate(prompts):
        row = cache.rows(i, i + 1)
        if native is not None and native.reads(len(prompt)):
            logits.append(native.read([prompt], row))
        else:
            logits.append(_prefill(model, prompt, row).float())
    return torch.cat(logits)


@torch.inference_mode()
def _prefill(model: CausalLM, prompt: Sequence[int], cache: Cache) -> Tensor:
    """Read a prompt into a cache of one row. -> logits [1, vocab_size]"""
    tokens = torch.tensor([prompt], device=model.device)  # (1, T)
    *before, last = torch.split(tokens, PREFILL_CHUNK, 1)
    with not_training(model):
        for chunk in before:
            model.hidden(chunk, cache)
        return model.last_logits(last, cache)


def _draw(logits: Tensor, rows: list[_Row]) -> list[int]:
    """The next token of each row."""
    drawn = draw_all([row.sampler for row in rows], logits)
    for row, one in zip(rows, drawn, strict=True):
        if one.error is not None:
            raise ValueError(one.error)
        row.drawn.append(one)
    return [one.token for one in drawn]


def _take(row: _Row, token: int, params: SamplingParams, tokenizer: Tokenizer) -> str:
    """Add a token to its row, or end the row; return the text that is now certain."""
    if token == tokenizer.eos_id:
        row.finish = "stop"
        row.drawn.pop()
        return row.stream.finish()
    row.new.append(token)
    piece = row.stream.push(token)
    if row.stream.stopped:
        row.finish = "stop"
    elif len(row.new) == params.max_new_tokens:
        piece += row.stream.finish()
        row.finish = "stop" if row.stream.stopped else "length"
    return piece
