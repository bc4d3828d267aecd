"""The suites of `launch.compare`: which runs make up a comparison, as data."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from launch.configs import algorithmic, maze, pairs
from launch.runs.build import build_make_model, build_task, count_parameters

_RECIPES = {"algorithmic.py": algorithmic, "maze.py": maze, "pairs.py": pairs}
_EQUAL_PARAMETERS = 100_000
_WIDEST = 4096


class Cell(NamedTuple):
    """One run of a suite. recipe: `FILE:MODEL` of `launch/configs`; changes: settings other than the recipe's."""

    recipe: str
    config: ConfigDict
    changes: dict[str, object]


def make_cell(recipe: str, changes: dict[str, object] | None = None) -> Cell:
    """The run of a recipe, some of its settings changed (`{"model.heads": 2}`)."""
    file, _, model = recipe.partition(":")
    config = _RECIPES[file].get_config(model)
    for name, value in (changes or {}).items():
        section, key = name.split(".", 1)
        if section not in config or key not in config[section]:
            raise ValueError(f"{recipe} has no setting {name!r}.")
        config[section][key] = value
    return Cell(recipe, config, changes or {})


def algorithmic_suite() -> dict[str, Cell]:
    """Five tasks, six models each: labels TASK/MODEL."""
    labels = [f"{task}/{model}" for task in algorithmic.TASKS for model in algorithmic.MODELS]
    return {label: make_cell(f"algorithmic.py:{label}") for label in labels}


def capacity_suite() -> dict[str, Cell]:
    """Random pairs: six models at equal state and at equal parameters, then each size of the two memories by itself."""
    cells = {f"equal_state/{model}": make_cell(f"pairs.py:{model}") for model in pairs.MODELS}
    for model in pairs.MODELS:
        width = width_for(f"pairs.py:{model}", _EQUAL_PARAMETERS)
        cells[f"equal_parameters/{model}"] = make_cell(f"pairs.py:{model}", {"model.hidden_features": width})
    sizes = {"memory_features": (16, 64), "memory_layers": (2, 3), "heads": (2, 4), "step_size": ("sum", "paper")}
    for key, values in sizes.items():
        for model in ("mnm-p", "mnm-g"):
            for value in values:
                cells[f"{key}/{model}_{key}={value}"] = make_cell(f"pairs.py:{model}", {f"model.{key}": value})
    return cells


def maze_suite() -> dict[str, Cell]:
    """Three sizes, seven agents each: labels SIZE/MODEL, the smallest maze first."""
    labels = [f"{size}/{model}" for size in maze.SIZES for model in maze.MODELS]
    return {label: make_cell(f"maze.py:{label}") for label in labels}


SUITES: dict[str, Callable[[], dict[str, Cell]]] = {
    "algorithmic": algorithmic_suite,
    "capacity": capacity_suite,
    "maze": maze_suite,
}


def parameters(config: ConfigDict) -> int:
    """How many numbers a model of the config has to learn."""
    plain = config.to_dict()
    return count_parameters(build_make_model(plain["model"], build_task(plain["task"])))


@functools.cache
def width_for(recipe: str, target: int) -> int:
    """The widest controller with which the model of a recipe has at most `target` parameters.

    Raises:
        ValueError: even a controller of one unit has more.
    """
    low, high = 0, _WIDEST  # the first fits, the second may not
    while low < high:
        middle = (low + high + 1) // 2
        fits = parameters(make_cell(recipe, {"model.hidden_features": middle}).config) <= target
        low, high = (middle, high) if fits else (low, middle - 1)
    if low < 1:
        raise ValueError(f"{recipe} has more than {target} parameters with any controller.")
    return low
