"""Recipes, one a file."""

from collections.abc import Mapping
from typing import Any


def choose_model(models: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """The section "model" of a recipe: `name`, and the settings that the recipe has for it.

    Raises:
        ValueError: the recipe has no such model.
    """
    if name not in models:
        raise ValueError(f"the recipe has the models {', '.join(models)}, got {name!r}.")
    return {"name": name, **models[name]}
