"""Recipes, one per file, each with its expected result and time in its docstring."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from launch.runs.registry import MODELS
from mnm_jax._checks import check_choice
from mnm_jax.training import TrainConfig

Settings = dict[str, Any]  # settings of a model, by name


def choose_model(models: Mapping[str, Settings], name: str) -> dict[str, Any]:
    """Returns the section "model" of a recipe.

    Args:
      models: settings of the models that the recipe supports explicitly, by name.
      name: name of the model; a model that is not in `models` gets its settings from the registry.

    Raises:
      ValueError: if neither the recipe nor the registry has the model.
    """
    check_choice("the recipe's model", name, MODELS)
    return {"name": name, **models.get(name, MODELS[name].settings)}


def training_section(**settings: Any) -> dict[str, Any]:
    """Returns the section "training" of a recipe: `settings`, and the defaults of `TrainConfig` for all others."""
    return dataclasses.asdict(TrainConfig(**settings))
