"""A moonlet model as EleutherAI's lm-eval sees one: likelihoods of continuations and texts, and generation.

    loglikelihood          log p(continuation | context), and whether greedy decoding would write it
    loglikelihood_rolling  log p(text | [BOS]), a long text in windows that overlap by half, as for bits per byte
    generate_until         a continuation up to a stop text

Needs the package lm-eval: this module imports it, so import this module only where it is wanted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from moonlet.eval.bits import measure
from moonlet.eval.score import passage, score
from moonlet.generate import SamplingParams, complete
from moonlet.model.model import CausalLM
from moonlet.text.tokenizer import Tokenizer

# What lm-eval's own models write at most where a task does not say.
MAX_NEW_TOKENS = 256


class MoonletLM(LM):  # type: ignore[misc]  # lm-eval has no types where it is not installed
    """The adapter.

    Args:
        context: tokens read at once; None: the model's max_position_embeddings. The oldest tokens of a longer context
            give way.
        batch_size: texts generated side by side.
    """

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, context: int | None = None, batch_size: int = 16) -> None:
        super().__init__()
        limit = model.config.context_limit
        if context is not None and not 1 <= context <= limit:
            raise ValueError(f"context is {context}; it must lie in 1..{limit}, the model's max_position_embeddings")
        self.model, self.tokenizer = model, tokenizer
        self.context, self.batch_size = context or limit, batch_size

    @property
    def tokenizer_name(self) -> str:
        """What a cache of requests is kept under."""
        return f"moonlet-{self.tokenizer.content_hash()[:16]}"

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log p in nats, is greedy) of each request (context, continuation)."""
        passages = []
        for request in requests:
            context, continuation = request.args
            passages.append(passage(self.tokenizer, context, continuation, self.context))
        return [(-s.nats, s.greedy) for s in score(self.model, passages)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """log p in nats of each request (text,), [EOS] not counted."""
        found = []
        for request in requests:
            ids = [self.tokenizer.bos_id, *self.tokenizer.encode(request.args[0])]
            # An empty text is certain: there is nothing to predict.
            found.append(-measure(self.model, [(ids, 1)], self.context).nats if len(ids) > 1 else 0.0)
        return found

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The continuation of each request (context, settings), without the stop text."""
        groups: dict[SamplingParams, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[self._params(request.args[1])].append(index)
        written = [""] * len(requests)
        for params, indices in groups.items():
            # Sorted by length, so that texts of one batch need like room.
            indices.sort(key=lambda i: len(requests[i].args[0]))
            prompts = [self._shortened(requests[i].args[0], params.max_new_tokens) for i in indices]
            done = complete(self.model, self.tokenizer, prompts, params, self.batch_size, exact=False)
            for index, completion in zip(indices, done, strict=True):
                written[index] = completion.text
        return written

    def _params(self, settings: dict[str, Any]) -> SamplingParams:
        """A task's generation settings, which are named as in transformers, as ours."""
        until = settings.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(until)
        room = self.model.config.context_limit - 1
        sampled = bool(settings.get("do_sample", float(settings.get("temperature", 0.0)) > 0))
        return SamplingParams(
            max_new_tokens=min(int(settings.get("max_gen_toks", MAX_NEW_TOKENS)), room),
            temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
            top_k=int(settings.get("top_k", 0)) if sampled else 0,
            top_p=float(settings.get("top_p", 1.0)) if sampled else 1.0,
            seed=int(settings.get("seed", 0)),
            stop=tuple(text for text in stop if text),
        )

    def _shortened(self, text: str, new_tokens: int) -> str:
        """The end of `text` that fits beside [BOS] and the new tokens."""
        room = self.model.config.context_limit - 1 - new_tokens
        ids: Sequence[int] = self.tokenizer.encode(text)
        return text if len(ids) <= room else self.tokenizer.decode(ids[len(ids) - room :]) if room > 0 else ""
