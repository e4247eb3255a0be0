"""What a model tells by itself: texts from nothing but [BOS], and how varied, repetitive and consistent they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from moonlet.data.story.asking import QUESTION
from moonlet.eval.consistency import check_story, shares
from moonlet.eval.diversity import Diversity, cut_alike, diversity, words
from moonlet.generate import Completion, SamplingParams, complete
from moonlet.model.model import CausalLM
from moonlet.text.tokenizer import Tokenizer

# As stories are usually drawn; figures of other settings are not comparable.
TEMPERATURE, TOP_P, MAX_NEW_TOKENS = 0.8, 0.95, 512
_BATCH = 16


@dataclass(frozen=True)
class Told:
    """Told texts, their figures, and those of as much validation text. consistency: None where there is no grammar to
    judge by; else the share of texts that pass each check of moonlet/eval/consistency.py."""

    texts: tuple[str, ...]
    diversity: Diversity
    reference: Diversity
    consistency: dict[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the texts."""
        return {
            "samples": len(self.texts),
            "temperature": TEMPERATURE,
            "top_p": TOP_P,
            "diversity": self.diversity.to_dict(),
            "validation_text": self.reference.to_dict(),
            "consistency": self.consistency,
        }


def tell(model: CausalLM, tokenizer: Tokenizer, count: int, seed: int = 0) -> list[Completion]:
    """Texts a model begins by itself, each with its own random numbers; equal arguments give equal texts.

    Raises:
        ValueError: no texts, or a model with fewer than three positions.
    """
    if count < 1:
        raise ValueError(f"{count} samples; there must be at least 1")
    room = model.config.context_limit - 1
    params = SamplingParams(max_new_tokens=min(MAX_NEW_TOKENS, room), temperature=TEMPERATURE, top_p=TOP_P, seed=seed)
    return complete(model, tokenizer, [""] * count, params, _BATCH, exact=False)


def judge(
    completions: Iterable[Completion], valid: Iterable[str], training: Iterable[str] | None, story_world: bool
) -> Told:
    """Measure told texts.

    Args:
        valid: validation documents, for the figures beside.
        training: training documents, in which copies are looked for; None: they are not at hand.
        story_world: whether the texts are stories of the story world.
    """
    stories = [story_of(c) for c in completions]
    told = [words(text) for text, _ in stories]
    reference = cut_alike((words(_story(text)) for text in valid), told)
    seen = None if training is None else list(training)
    return Told(
        tuple(text for text, _ in stories),
        diversity(told, seen),
        diversity(reference, seen),
        shares(check_story(text, ended) for text, ended in stories) if story_world else None,
    )


def story_of(completion: Completion) -> tuple[str, bool]:
    """The story in what was told, without questions behind it, and whether it ended by itself."""
    story = _story(completion.text)
    return story, story != completion.text or completion.finish_reason == "stop"


def _story(text: str) -> str:
    return text.partition(f"\n{QUESTION}")[0]
