"""Named models: each a config.json beside this file, the big ones as published."""

from __future__ import annotations

import json
from pathlib import Path

from moonlet.config.model import ModelConfig
from moonlet.config.nearest import unknown

_FOLDER = Path(__file__).parent


def preset_names() -> list[str]:
    """Names that `preset` knows."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def preset(name: str) -> ModelConfig:
    """Return the named model's configuration; an unknown name is a ValueError naming the nearest valid one."""
    if name not in preset_names():
        raise unknown("preset", name, preset_names())
    return ModelConfig.from_dict(json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8")))
