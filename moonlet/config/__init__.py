"""What a model, and a run, is: plain frozen dataclasses, official names, no torch."""

from moonlet.config.linear_attention import LinearAttention
from moonlet.config.model import ModelConfig
from moonlet.config.presets import preset, preset_names
from moonlet.config.recipe import Recipe, load_recipe, recipe_from_dict
from moonlet.config.rope_scaling import RopeScaling

__all__ = [
    "LinearAttention",
    "ModelConfig",
    "Recipe",
    "RopeScaling",
    "load_recipe",
    "preset",
    "preset_names",
    "recipe_from_dict",
]
