"""A recipe: everything one training run needs, as TOML.

    name = "tinystories"

    [model]
    preset = "k2-nano"          # and any ModelConfig field, to change it
    [data]
    path = "train.txt"
    [train]
    steps = 1000

`a.b=c` overrides change single values (`train.steps=50`, `model.hidden_size=128`). A key that does not exist is an
error naming the nearest one that does.
"""

from __future__ import annotations

import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from moonlet.config.linear_attention import LinearAttention
from moonlet.config.model import ModelConfig, field_names
from moonlet.config.nearest import unknown
from moonlet.config.optim_check import check_balance, check_optimizer, check_schedule
from moonlet.config.presets import preset
from moonlet.config.published import PUBLISHED
from moonlet.config.recall import RECALL, check_recall
from moonlet.config.sections import (
    SECTIONS,
    DataSettings,
    LogSettings,
    OptimSettings,
    SampleSettings,
    TokenizerSettings,
    TrainSettings,
)


@dataclass(frozen=True)
class Recipe:
    """One run. `model` is the resolved configuration; its vocab_size follows the tokenizer.

    `smoke` holds overrides that make a trial of under a minute out of the recipe, without a network.
    """

    name: str = "run"
    model: ModelConfig = field(default_factory=lambda: preset("k2-nano"))
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    sample: SampleSettings = field(default_factory=SampleSettings)
    log: LogSettings = field(default_factory=LogSettings)
    prompts: tuple[str, ...] = ("Once upon a time", "One day", "There was a little")
    smoke: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as nested plain values, complete, ready for TOML or JSON."""
        out: dict[str, Any] = {"name": self.name, "prompts": list(self.prompts), "smoke": list(self.smoke)}
        out["model"] = self.model.settings()
        for section in SECTIONS:
            settings = getattr(self, section)
            out[section] = {f.name: getattr(settings, f.name) for f in fields(settings)}
        return out


def load_recipe(path: str | Path, overrides: Sequence[str] = (), smoke: bool = False) -> Recipe:
    """Read the TOML recipe at `path` and apply `a.b=c` overrides.

    Args:
        smoke: apply the recipe's own `smoke` overrides first.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TOML, an unknown key, or an impossible value.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {path}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    try:
        if smoke:
            trial = _convert("smoke", tuple[str, ...], data.get("smoke", []))
            if not trial:
                raise ValueError('it has no smoke form; add smoke = ["train.steps=20", ...]')
            overrides = [*trial, *overrides]
        return recipe_from_dict(data, overrides)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def recipe_from_dict(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Build a Recipe from nested plain values and `a.b=c` overrides."""
    merged: dict[str, Any] = {key: dict(value) if isinstance(value, Mapping) else value for key, value in data.items()}
    for override in overrides:
        _apply(merged, override)
    hints = typing.get_type_hints(Recipe)
    values: dict[str, Any] = {}
    for key, value in merged.items():
        if key not in hints:
            raise unknown("recipe key", key, _all_keys())
        if key == "model":
            continue
        if is_dataclass(hints[key]):
            values[key] = _read_section(key, typing.cast(type, hints[key]), _table(key, value))
        else:
            values[key] = _convert(key, hints[key], value)
    train = values.get("train", TrainSettings())
    if train.steps > 0 and "warmup_steps" not in merged.get("optim", {}):
        # A default must not stand in the way of a short trial.
        optim = values.get("optim", OptimSettings())
        values["optim"] = replace(optim, warmup_steps=min(optim.warmup_steps, train.steps // 5))
    values["model"] = _read_model(_table("model", merged.get("model", {})), train.init)
    return Recipe(**values)


def override_model(config: ModelConfig, overrides: Sequence[str]) -> ModelConfig:
    """Return `config` with `field=value` (or `model.field=value`) overrides applied.

    Raises:
        ValueError: an unknown field, naming the nearest; a value of the wrong type, or an impossible one.
    """
    changes: dict[str, Any] = {"model": {}}
    for override in overrides:
        name, sign, _ = override.partition("=")
        if not sign or not name.strip():
            raise ValueError(f"override {override!r} is not of the form field=value")
        _apply(changes, f"model.{override.strip().removeprefix('model.')}")
    return _change_model(config, changes["model"])


def _table(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r}; it must be a table, [{name}]")
    return value


def _read_model(data: Mapping[str, Any], init: str) -> ModelConfig:
    given = dict(data)
    if not init:
        return _change_model(preset(given.pop("preset", "k2-nano")), given)
    if "preset" in given:
        raise ValueError(f"model.preset and train.init are both given; the architecture is that of {init}")
    # A run's own recipe is complete: it can be read when what it once started from is gone.
    complete = set(field_names()) <= set(given)
    return _change_model(ModelConfig() if complete else _config_of(Path(init)), given)


def _config_of(path: Path) -> ModelConfig:
    """The architecture of a model directory or a run folder."""
    if (path / "config.json").is_file():
        return ModelConfig.from_file(path)
    if (path / "recipe.toml").is_file():
        return load_recipe(path / "recipe.toml").model
    raise FileNotFoundError(f"train.init: {path} is neither a model directory nor a run folder")


def _change_model(base: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    valid = field_names()
    hints = typing.get_type_hints(ModelConfig)
    given: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in valid:
            raise unknown("recipe key", f"model.{name}", [f"model.{field}" for field in valid])
        if name not in _TABLES:
            given[name] = _convert(f"model.{name}", hints[name], value)
        elif value is not None and value != "null" and not isinstance(value, Mapping):
            raise ValueError(f"model.{name} is {value!r}; it must be a table, or null")
    for name in set(_TABLES) & set(changes):
        value = changes[name]
        given[name] = _TABLES[name](base, value, given) if isinstance(value, Mapping) else None
    return base.replace(**given)


def _change_scaling(base: ModelConfig, value: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Single values change the scaling that is there; where there is none, or of another type, they make one."""
    before = base.rope_scaling.to_dict() if base.rope_scaling else {"type": "yarn"}
    kind = value.get("rope_type", value.get("type", before["type"]))
    return (before if kind == before["type"] else {}) | dict(value)


def _change_linear(base: ModelConfig, value: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Single values change the table that is there; where there is none they make one."""
    layers = given.get("num_hidden_layers", base.num_hidden_layers)
    return (base.linear_attn_config or LinearAttention()).changed(value, layers)


# Settings of the model that are tables; an override may change one of their values.
_TABLES = {"rope_scaling": _change_scaling, "linear_attn_config": _change_linear}


def _read_section(section: str, kind: type, data: Mapping[str, Any]) -> object:
    hints = typing.get_type_hints(kind)
    for name in data:
        if name not in hints:
            raise unknown("recipe key", f"{section}.{name}", _all_keys())
    return kind(**{name: _convert(f"{section}.{name}", hints[name], value) for name, value in data.items()})


def _all_keys() -> list[str]:
    keys = ["name", "prompts", "smoke", "model.preset", *(f"model.{name}" for name in field_names())]
    for section, kind in SECTIONS.items():
        keys += [f"{section}.{f.name}" for f in fields(kind)]
    return keys


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one `a.b=c` in `data`; c is read as TOML, and as a plain string where it is not TOML."""
    key, sign, text = override.partition("=")
    key = key.strip()
    if not sign or not key:
        raise ValueError(f"override {override!r} is not of the form a.b=c")
    if key not in _all_keys() and not key.startswith(tuple(f"model.{name}." for name in _TABLES)):
        raise unknown("recipe key", key, _all_keys())
    try:
        value = tomllib.loads(f"v = {text.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, last = key.split(".")
    table = data
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ValueError(f"override {override!r}: {section} is {table!r}, not a table")
    table[last] = value


def _convert(name: str, hint: Any, value: Any) -> Any:
    """Check `value` against a field's type, turning whole numbers into floats where a float is wanted."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None or value == "null":
            return None
        return _convert(name, next(a for a in args if a is not type(None)), value)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name} is {value!r}; it must be a list")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise ValueError(f"{name} has {len(value)} entries; it must have {len(args)}")
        return tuple(_convert(name, args[0], item) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{name} is {value!r}; it must be of type {hint.__name__}")
    return value


def _check(recipe: Recipe) -> None:
    """Refuse impossible values, naming both numbers."""
    t, o, d = recipe.train, recipe.optim, recipe.data
    choices = (
        ("tokenizer.kind", recipe.tokenizer.kind, ("bpe", "byte", "word", "sentencepiece")),
        ("data.kind", d.kind, ("story", "tinystories", "text", *RECALL)),
        ("data.split_by", d.split_by, ("separator", "file")),
        ("log.wandb", recipe.log.wandb, ("off", "offline", "online")),
        ("optim.kind", o.kind, ("adamw", "muon", "muonclip")),
        ("optim.schedule", o.schedule, ("wsd", "cosine", "constant", *PUBLISHED)),
        ("optim.decay_shape", o.decay_shape, ("linear", "1-sqrt", "cosine")),
        ("optim.balance", o.balance, ("sign", "zero-mean", "off")),
        ("train.dtype", t.dtype, ("auto", "float32", "bfloat16")),
        ("train.compile", t.compile, ("auto", "on", "off")),
    )
    for name, value, valid in choices:
        if value not in valid:
            raise ValueError(f"{name} is {value!r}; valid: {', '.join(valid)}")
    if d.kind == "text" and not d.path:
        raise ValueError('data.kind is "text" and data.path is empty; give data.path=FILE')
    if t.steps <= 0 and t.minutes <= 0:
        raise ValueError("train.steps and train.minutes are both 0; give one of them")
    check_optimizer(o)
    check_schedule(o, t)
    check_balance(o, t)
    micro = t.micro_batch_size or t.batch_size
    if t.batch_size < 1 or micro < 1 or t.batch_size % micro:
        raise ValueError(f"train.batch_size {t.batch_size} is not a multiple of train.micro_batch_size {micro}")
    if not 1 <= t.seq_len <= recipe.model.max_position_embeddings:
        limit = recipe.model.max_position_embeddings
        raise ValueError(f"train.seq_len is {t.seq_len}; it must lie in 1..{limit}, model.max_position_embeddings")
    if d.stories < 0:
        raise ValueError(f"data.stories is {d.stories}; it must be at least 0, and 0 means all")
    if not 0 < d.valid_fraction < 1:
        raise ValueError(f"data.valid_fraction is {d.valid_fraction}; it must lie between 0 and 1")
    if d.kind in RECALL:
        check_recall(d, t, recipe.tokenizer.path)
    if t.keep_last < 1:
        raise ValueError(f"train.keep_last is {t.keep_last}; it must be at least 1")
