"""Recipes, one a file."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mnm_jax.training import TrainConfig


def choose_model(models: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """The section "model" of a recipe: `name`, and the settings that the recipe has for it.

    Raises:
        ValueError: the recipe has no such model.
    """
    if name not in models:
        raise ValueError(f"the recipe has the models {', '.join(models)}, got {name!r}.")
    return {"name": name, **models[name]}


def training_section(**settings: Any) -> dict[str, Any]:
    """The section "training" of a recipe: its `settings`, and the defaults of `TrainConfig` for all others."""
    return dataclasses.asdict(TrainConfig(**settings))
