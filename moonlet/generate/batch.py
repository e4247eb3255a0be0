"""The batching engine: texts come and go at any time, and all that are live go on together, a token a step.

    submit -> waiting -> [slot and blocks] -> reading, a chunk a step -> a token a step -> ends, slot and blocks free

A text is taken in when a slot is free and all the blocks it can ever need are: so what has begun can always go on, and
nothing is ever put back. Texts are taken in by order of arrival. A long prompt is read in chunks, next to the steps of
the others. What prompts have in common with earlier ones is not read again (`prefix.py`), also where the earlier one is
still being read: then the later one waits for it.

What a request gets does not depend on any of this: neighbours, order, chunks, slots and reuse change no bit of its
logits (`forward.py`, `reading.py`), and it draws from random numbers of its own.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moonlet.generate.blocks import BlockPool
from moonlet.generate.forward import Forward, Portion
from moonlet.generate.live import Live
from moonlet.generate.paged_step import Compile
from moonlet.generate.prefix import PrefixStore
from moonlet.generate.request import Event, Finish, Likely, Request
from moonlet.generate.sampler import Drawn, Sampler, draw_all
from moonlet.generate.sharing import Sharing
from moonlet.generate.text import TextStream
from moonlet.model.model import CausalLM
from moonlet.model.paged_cache import PagedCache, blocks_for
from moonlet.text import Tokenizer

_TOKENS_A_SLOT = 2048  # by default, where the model has more positions


@dataclass(frozen=True)
class Stats:
    """What an engine holds now, and what it has done."""

    live: int
    """Texts in slots: being read or decoded."""
    waiting: int
    slots: int
    free_slots: int
    blocks: int
    free_blocks: int
    """Blocks nobody holds."""
    held_blocks: int
    """Blocks of live texts; the rest keeps beginnings."""
    block: int
    """Positions in a block."""
    cached_tokens: int
    """Tokens in the store of beginnings."""
    cache_bytes: int
    submitted: int
    finished: dict[str, int]
    """Texts that ended, by how."""
    read_tokens: int
    """Tokens of prompts that were read."""
    reused_tokens: int
    """Tokens of prompts that were not, as they had been before."""
    drawn_tokens: int
    steps: int


class Engine:
    """Continues texts of one model; one thread calls it, and the weights must not change meanwhile.

    Args:
        slots: texts that are live at once.
        tokens: that the cache has room for, all texts together; None: 2048 a slot, or the model's positions if fewer.
        block: positions in a block of the cache; beginnings are shared by whole blocks.
        reuse_prefixes: whether beginnings that were read before are taken over.
        prefill_chunk: tokens of prompts read in one step: fewer disturb the others less, more are read faster.
        snapshots: copies of KDA's state kept, so many beginnings can be gone on from (in other models: ends of prompts
            whose logits are kept); None: two a slot, and 8.
        poison: fill what becomes free with NaN, to see that nobody reads it.
        compile: whether steps are compiled ("on", "off"); "auto": on a GPU, if that works (`paged_step.py`).
        notice: is told in a line if they should have been and were not.

    Raises:
        ValueError: a size that cannot be, a tokenizer with more tokens than the model, or `compile` is "on" where
            nothing can be compiled.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        slots: int = 16,
        tokens: int | None = None,
        block: int = 32,
        reuse_prefixes: bool = True,
        prefill_chunk: int = 256,
        snapshots: int | None = None,
        poison: bool = False,
        compile: Compile = "auto",
        notice: Callable[[str], None] | None = None,
    ) -> None:
        limit = model.config.context_limit
        tokens = slots * min(limit, _TOKENS_A_SLOT) if tokens is None else tokens
        snapshots = 2 * slots + 8 if snapshots is None else snapshots
        _check_sizes(slots=slots, block=block, prefill_chunk=prefill_chunk, snapshots=snapshots, tokens=tokens)
        if tokens < block:
            raise ValueError(f"the cache has room for {tokens} tokens and a block for {block}; give at least one block")
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}; "
                "use the tokenizer the model was trained with"
            )
        self._model, self._tokenizer, self._chunk, self._poison = model, tokenizer, prefill_chunk, poison
        stateful = any(map(model.config.is_kda, range(model.config.num_hidden_layers)))
        spare = snapshots if stateful and reuse_prefixes else 0
        blocks = blocks_for(tokens, block)  # whole ones: who asked for room for a text has it
        self._cache = PagedCache(model, slots, blocks, block, blocks_for(min(limit, tokens), block), spare)
        self._pool = BlockPool(blocks, self._cache.poison_block if poison else None)
        self._free_slots = list(range(slots - 1, -1, -1))
        self._slots = slots
        rows = range(slots, slots + spare)
        self._store = PrefixStore(self._pool, self._cache, rows, snapshots, poison) if reuse_prefixes else None
        self._sharing = Sharing(self._pool, self._cache, self._store)
        self._forward = Forward(model, self._cache, compile)
        if notice is not None and self._forward.told:
            notice(self._forward.told)
        self._waiting: deque[Live] = deque()
        self._live: list[Live] = []
        self._known: dict[int, Live] = {}
        self._told: list[Event] = []
        self._stuck: int | None = None  # blocks held when the first of those waiting did not fit, until fewer are
        self._tickets = self._read = self._reused = self._drawn = self._steps = 0
        self._finished: Counter[str] = Counter()
        if poison:
            for free in range(self._pool.total):
                self._cache.poison_block(free)
            for row in range(slots + spare):
                self._cache.poison_state(row)

    def submit(self, request: Request) -> int:
        """Take a request in; its text begins when there is room.

        Returns:
            Its ticket, by which events name it.

        Raises:
            ValueError: it can never be answered: no prompt, a token that the model does not know, more tokens than the
                model or the cache has positions for, or settings that do not go with the tokenizer.
        """
        prompt, V = request.prompt, self._model.config.vocab_size
        if not prompt:
            raise ValueError("the prompt is empty; give at least one token")
        if min(prompt) < 0 or max(prompt) >= V:
            wrong = next(token for token in prompt if not 0 <= token < V)
            raise ValueError(f"the prompt holds token {wrong}; the model's vocabulary is 0..{V - 1}")
        whole = len(prompt) + request.params.max_new_tokens
        for room, what in (
            (self._model.config.context_limit, "the model has {} positions"),
            (self._pool.total * self._cache.block, "the cache has room for {} tokens"),
        ):
            if whole > room:
                raise ValueError(
                    f"a prompt of {len(prompt)} tokens with max_new_tokens {request.params.max_new_tokens} takes "
                    f"{whole}, and {what.format(room)}: shorten it or lower max_new_tokens"
                )
        text = Live(
            ticket=self._tickets,
            request=request,
            sampler=Sampler(request, self._tokenizer, V),
            stream=TextStream(self._tokenizer, request.params.stop, prompt, request.skip_special),
            reading=self._forward.reading(len(prompt)),
            tokens=list(prompt),
        )
        self._tickets += 1
        self._waiting.append(text)
        self._known[text.ticket] = text
        return text.ticket

    def cancel(self, ticket: int) -> None:
        """End a text, wherever it is; what it holds is free at once, and the next step tells its end. One that has
        ended stays as it ended."""
        text = self._known.get(ticket)
        if text is None:
            return
        if text.slot < 0:
            self._waiting.remove(text)
        self._told.append(self._end(text, Event(ticket, text=text.stream.finish()), "cancelled"))

    @property
    def idle(self) -> bool:
        """Whether a step has nothing to do and nothing to tell."""
        return not (self._live or self._waiting or self._told)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Take in what fits, read a chunk, draw one token for each text that is read, and say what happened."""
        events, self._told = self._told, []
        self._admit()
        portions = self._forward.order(self._portions())
        if not self._live:
            return events
        self._steps += 1
        logits = self._forward(portions) if portions else None
        ready = self._taken_in(portions, logits)
        if ready:
            rows = [text.logits for text in ready if text.logits is not None]
            if rows:  # these come last, and were not fed
                known = torch.stack(rows)
                logits = known if logits is None or not len(logits) else torch.cat((logits, known))
                for text in ready:
                    text.logits = None
            assert logits is not None
            drawn = draw_all([text.sampler for text in ready], logits)
            events += [self._take(text, one) for text, one in zip(ready, drawn, strict=True)]
        return events

    def clear_prefixes(self) -> None:
        """Forget all beginnings; live texts go on."""
        self._sharing.clear(self._live)
        self._stuck = None

    def stats(self) -> Stats:
        """Counts; cheap."""
        return Stats(
            live=len(self._live),
            waiting=len(self._waiting),
            slots=self._slots,
            free_slots=len(self._free_slots),
            blocks=self._pool.total,
            free_blocks=self._pool.free,
            held_blocks=self._pool.held,
            block=self._cache.block,
            cached_tokens=0 if self._store is None else self._store.tokens,
            cache_bytes=self._cache.nbytes,
            submitted=self._tickets,
            finished=dict(self._finished),
            read_tokens=self._read,
            reused_tokens=self._reused,
            drawn_tokens=self._drawn,
            steps=self._steps,
        )

    def close(self) -> None:
        """Cancel everything and forget all beginnings; nobody is told."""
        for ticket in list(self._known):
            self.cancel(ticket)
        self._told.clear()
        self.clear_prefixes()

    def _admit(self) -> None:
        if self._stuck is not None and self._pool.held < self._stuck:
            self._stuck = None
        while self._waiting and self._free_slots and self._stuck is None:
            text = self._waiting[0]
            if not self._sharing.place(text, self._free_slots[-1]):
                self._stuck = self._pool.held
                return
            self._free_slots.pop()
            self._waiting.popleft()
            self._live.append(text)
            self._sharing.begin(text, self._live)

    def _portions(self) -> list[Portion]:
        """What each text takes in next: those that decode a token each, those that read the chunk, first come first."""
        portions, left = [], self._chunk
        for text in self._live:
            if not text.is_reading:
                if not text.is_ready:
                    portions.append((text, 1))
                continue
            if text.follows is not None and not self._sharing.may_go_on(text, self._live):
                continue
            if left > 0 and text.is_reading:
                count = text.reading.piece(text.length, left, text.cuts)
                portions.append((text, count))
                left -= count
        return portions

    def _taken_in(self, portions: list[Portion], logits: Tensor | None) -> list[Live]:
        """Count what was fed and store what others may use. -> the texts that draw now, in the order of the logits."""
        ready = []
        for text, count in portions:
            reading = text.is_reading
            text.length += count
            if text.is_ready:
                ready.append(text)
            if reading:
                self._read += count
                row = logits[len(ready) - 1] if text.is_ready and logits is not None else None
                self._sharing.has_read(text, row)
        return ready + [text for text in self._live if text.logits is not None]

    def _take(self, text: Live, drawn: Drawn) -> Event:
        """Add what was drawn to its text, or end the text."""
        reused, text.told = (0 if text.told else text.reused), True
        ticket, stream, token = text.ticket, text.stream, drawn.token
        if drawn.error is not None:
            return self._end(text, Event(ticket, text=stream.finish(), error=drawn.error, reused=reused), "error")
        self._drawn += 1
        if token in text.request.ends:
            return self._end(text, Event(ticket, text=stream.finish(), reused=reused), "stop")
        text.tokens.append(token)
        piece = stream.push(token)
        finish: Finish | None = None
        if stream.stopped:
            finish = "stop"
        elif text.sampler.done:
            piece, finish = piece + stream.finish(), "stop"
        elif len(text.tokens) - text.prompt_length == text.request.params.max_new_tokens:
            piece += stream.finish()
            finish = "stop" if stream.stopped else "length"
        own = None if drawn.logprob is None else Likely(token, drawn.logprob)
        event = Event(ticket, token, piece, own, drawn.likely, reused=reused)
        return event if finish is None else self._end(text, event, finish)

    def _end(self, text: Live, event: Event, finish: Finish) -> Event:
        """Free what a text holds. -> its last event"""
        del self._known[text.ticket]
        self._finished[finish] += 1
        if text.slot >= 0:
            self._reused += text.reused
            self._live.remove(text)
            if finish != "error":
                self._sharing.has_ended(text)
            for block in text.blocks:
                self._pool.leave(block)
            self._free_slots.append(text.slot)
            if self._poison:
                self._cache.poison_state(text.slot)
            text.slot, text.blocks = -1, []
        self._stuck = None
        return replace(event, finish=finish)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
