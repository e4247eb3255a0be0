"""Who takes part in `wallclock.py`: moonlet's recipes and dense GPTs, and what of their settings is tried.

A file of contenders has a table each; `recipe` is read for its [model], [train], [optim] and [tokenizer], single
sections change it, `dense` makes it a dense GPT with the active parameters of that model, `sweep` lists values:

    ["moonlet"]
    recipe = "recipes/speedrun.toml"
    lrs = [4e-3, 8e-3]
    ["dense, Muon"]
    recipe = "recipes/speedrun.toml"
    dense = { head_width = 64, dropout = 0.0 }        # and every field of DenseConfig
    optim = { kind = "muon" }
    lrs = [4e-3, 8e-3]
    sweep = { "train.batch_size" = [16, 32], "dense.dropout" = [0.0, 0.1] }
"""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dense_gpt import DenseGPT, equal_active
from small_runs import ANY_MODEL, merged

from moonlet.config import Recipe

Changes = dict[str, dict[str, Any]]
SECTIONS = ("model", "train", "optim", "tokenizer")
# What the search in docs/notebook.md came to; the decay is for a text that is read many times.
NANO: Changes = {
    "model": {"preset": "linear-nano"},
    "train": {"seq_len": 256, "batch_size": 16},
    "optim": {"schedule": "wsd", "decay_fraction": 0.6, "warmup_steps": 20, "weight_decay": 1.0},
}


@dataclass(frozen=True)
class Contender:
    """A name, what its runs change in the common recipe, and what is tried."""

    name: str
    changes: Changes
    lrs: Sequence[float]
    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def dense(self) -> bool:
        """Whether it is the peer."""
        return "dense" in self.changes.get("benchmark", {})

    def variants(self) -> Iterator[Changes]:
        """Its changes with every combination of the values of its sweep, learning rates apart."""
        for values in itertools.product(*self.sweep.values()):
            tables: list[Changes] = []
            for name, value in zip(self.sweep, values, strict=True):
                section, _, key = name.partition(".")
                tables.append({"benchmark": {"dense": {key: value}}} if section == "dense" else {section: {key: value}})
            yield combined(self.changes, *tables)


def built_in() -> list[Contender]:
    """The nano Kimi Linear and its dense peers, embedding and head one matrix in all."""
    dense = {"benchmark": {"dense": {"tied": True}}}
    tied = {"model": {"tie_word_embeddings": True}, "optim": {"kind": "muonclip"}}
    return [
        Contender("linear-nano", merged(NANO, tied), (4e-3, 6e-3, 1e-2)),
        Contender("dense GPT, AdamW", merged(NANO, dense, {"optim": {"kind": "adamw"}}), (2e-3, 3e-3, 5e-3)),
        Contender("dense GPT, Muon", merged(NANO, dense, {"optim": {"kind": "muon"}}), (4e-3, 6e-3, 1e-2)),
    ]


def read_contenders(file: Path) -> list[Contender]:
    """A contender a table of a TOML file; see above.

    Raises:
        ValueError: not TOML, or a table that says something unknown.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid TOML: {error}") from None
    known = {"recipe", "dense", "lrs", "sweep", *SECTIONS}
    found = []
    for name, given in tables.items():
        if odd := sorted(set(given) - known):
            raise ValueError(f"{file}, {name}: {odd[0]!r} is unknown; valid: {', '.join(sorted(known))}")
        changes: Changes = NANO
        if "recipe" in given:
            recipe = tomllib.loads(Path(given["recipe"]).read_text(encoding="utf-8"))
            changes = {section: recipe[section] for section in SECTIONS if section in recipe}
        changes = merged(changes, {section: given[section] for section in SECTIONS if section in given})
        if "dense" in given:
            changes = merged(changes, {"benchmark": {"dense": given["dense"]}})
        lrs = given.get("lrs", [changes.get("optim", {}).get("lr", 4e-3)])
        found.append(Contender(name, changes, lrs, given.get("sweep", {})))
    return found


def dense_of(recipe: Recipe, settings: Mapping[str, Any], compiled: bool = False) -> Any:
    """The dense GPT with the active parameters of a recipe's model."""
    defaults = {"head_width": min(64, recipe.model.hidden_size), "attention": "products"}
    return DenseGPT(equal_active(recipe.model, **(defaults | dict(settings))), recipe.train.seed, compiled)


def speed_key(changes: Changes) -> str:
    """What a run's speed depends on, as one line."""
    train = ("seq_len", "batch_size", "micro_batch_size", "separate_documents", "compile")
    parts = {
        **{section: changes[section] for section in ("model", "benchmark", "tokenizer") if section in changes},
        "train": {name: value for name, value in changes.get("train", {}).items() if name in train},
        "optim": {n: v for n, v in changes.get("optim", {}).items() if n in ("kind", "ns_steps", "muon_per_head")},
    }
    return json.dumps(parts, sort_keys=True)


def tokens_per_step(changes: Changes, base: Changes) -> int:
    """What a step reads."""
    train = merged(ANY_MODEL, base, changes)["train"]
    return int(train["seq_len"] * train["batch_size"])


def combined(*tables: Changes) -> Changes:
    """As `merged`, the settings of a dense model too."""
    out = merged(*tables)
    dense = [t["benchmark"]["dense"] for t in tables if "dense" in t.get("benchmark", {})]
    if dense:
        out["benchmark"] = out["benchmark"] | {"dense": {k: v for settings in dense for k, v in settings.items()}}
    return out


def value_of(changes: Changes, name: str) -> Any:
    """What `changes` say of a sweep's name: "section.key", or "dense.key"."""
    section, _, key = name.partition(".")
    return changes["benchmark"]["dense"][key] if section == "dense" else changes[section][key]
