"""The suites of `launch.compare`: the runs of a comparison, as data."""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from launch.configs import algorithmic, league, maze, pairs
from launch.runs.build import build_make_model, build_task, count_parameters
from launch.runs.changes import apply

_EQUAL_PARAMETERS = 100_000
_WIDEST = 4096


class Tuning(NamedTuple):
    """A setting that is selected by validation accuracy before a run trains.

    Attributes:
      name: the setting, such as "training.learning_rate".
      values: the values that are tried, each in a run of its own; at equal accuracy the last is selected.
      changes: settings in which these runs differ from the run, such as `{"training.seeds": 1}`.
    """

    name: str
    values: tuple[Any, ...]
    changes: Mapping[str, Any]


class SuiteRun(NamedTuple):
    """One run of a suite.

    Attributes:
      recipe: FILE:MODEL of `launch/configs`.
      config: its config.
      changes: settings that differ from the recipe.
      tuning: the setting that is selected before training; None: no setting.
    """

    recipe: str
    config: ConfigDict
    changes: dict[str, Any]
    tuning: Tuning | None = None

    def change(self, changes: Mapping[str, Any]) -> "SuiteRun":
        """Returns the run with more settings changed; a setting that is given is not tuned.

        Raises:
          ValueError: if the recipe has no such setting.
        """
        run = make_run(self.recipe, {**self.changes, **changes})
        return run if self.tuning is None or self.tuning.name in changes else run._replace(tuning=self.tuning)


Suite = dict[str, SuiteRun]


def make_run(recipe: str, changes: Mapping[str, Any] | None = None) -> SuiteRun:
    """Returns the run of a recipe with some settings changed, such as `{"model.heads": 2}`.

    Raises:
      ValueError: if the recipe has no such setting, or one of another type.
    """
    file, _, model = recipe.partition(":")
    config = importlib.import_module(f"launch.configs.{file.removesuffix('.py')}").get_config(model)
    changes = dict(changes or {})
    return SuiteRun(recipe, apply(config, changes), changes)


def algorithmic_suite() -> Suite:
    """Returns five tasks with six models each: labels TASK/MODEL."""
    labels = [f"{task}/{model}" for task in algorithmic.TASKS for model in algorithmic.MODELS]
    return {label: make_run(f"algorithmic.py:{label}") for label in labels}


def capacity_suite() -> Suite:
    """Returns runs on random pairs: six models at equal state and equal parameters, then mnm-p and mnm-g varied."""
    runs = {f"equal_state/{model}": make_run(f"pairs.py:{model}") for model in pairs.MODELS}
    for model in pairs.MODELS:
        width = width_for(f"pairs.py:{model}", _EQUAL_PARAMETERS)
        runs[f"equal_parameters/{model}"] = make_run(f"pairs.py:{model}", {"model.hidden_features": width})
    sizes: dict[str, tuple] = {"memory_features": (16, 64), "memory_layers": (2, 3), "heads": (2, 4)}
    for key, values in (sizes | {"step_size": ("sum", "paper")}).items():
        for model in ("mnm-p", "mnm-g"):
            for value in values:
                runs[f"{key}/{model}_{key}={value}"] = make_run(f"pairs.py:{model}", {f"model.{key}": value})
    return runs


def league_suite() -> Suite:
    """Returns the models of every group of the league, with tuned learning rates: labels GROUP/MODEL."""
    tuning = Tuning("training.learning_rate", league.LEARNING_RATES, league.TUNING)
    labels = [f"{group}/{model}" for group, setting in league.GROUPS.items() for model in setting.models]
    return {label: make_run(f"league.py:{label}")._replace(tuning=tuning) for label in labels}


def maze_suite() -> Suite:
    """Returns three sizes with seven agents each: labels SIZE/MODEL, the smallest maze first."""
    labels = [f"{size}/{model}" for size in maze.SIZES for model in maze.MODELS]
    return {label: make_run(f"maze.py:{label}") for label in labels}


SUITES: dict[str, Callable[[], Suite]] = {
    "algorithmic": algorithmic_suite,
    "capacity": capacity_suite,
    "league": league_suite,
    "maze": maze_suite,
}


def parameters(config: ConfigDict) -> int:
    """Returns the number of learned values of the model of a config."""
    plain = config.to_dict()
    return count_parameters(build_make_model(plain["model"], build_task(plain["task"])))


@functools.cache
def width_for(recipe: str, target: int) -> int:
    """Returns the width of the largest controller with which a recipe's model has at most `target` parameters.

    Raises:
      ValueError: if a controller of one unit already has more.
    """
    low, high = 0, _WIDEST  # low always fits; high may not
    while low < high:
        middle = (low + high + 1) // 2
        fits = parameters(make_run(recipe, {"model.hidden_features": middle}).config) <= target
        low, high = (middle, high) if fits else (low, middle - 1)
    if low < 1:
        raise ValueError(f"{recipe} has more than {target} parameters with any controller.")
    return low
