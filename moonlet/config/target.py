"""What a person calls a model: a preset, a model folder or its config.json, or a run folder."""

from __future__ import annotations

from pathlib import Path

from moonlet.config.model import ModelConfig
from moonlet.config.presets import preset, preset_names
from moonlet.config.recipe import load_recipe


def read_target(target: str) -> ModelConfig:
    """The configuration that `target` names.

    Raises:
        ValueError: neither a preset nor a path (the message names the nearest preset), or a damaged file.
        FileNotFoundError: a folder that holds no model.
    """
    path = Path(target)
    if target in preset_names() or not path.exists():
        return preset(target)
    if path.suffix == ".toml" and path.is_file():
        return load_recipe(path).model
    if path.is_file() or (path / "config.json").is_file():
        return ModelConfig.from_file(path)
    if (path / "recipe.toml").is_file():
        return load_recipe(path / "recipe.toml").model
    raise FileNotFoundError(f"{path} is neither a model folder (config.json) nor a run folder (recipe.toml)")
