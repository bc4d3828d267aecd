"""Builds the objects that a config describes, and checks every key."""

import contextlib
import difflib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx

from launch.runs.own import FOLDER, is_place, load
from launch.runs.registry import MODELS, TASKS, load_task
from mnm_jax._checks import check_choice, check_flags, check_fraction, check_sizes
from mnm_jax.training import SequenceModel, Task, TrainConfig, optional_member

_SECTIONS = ("task", "model", "training")
_TASK_MEMBERS = [name for name in (*Task.__annotations__, *vars(Task)) if not name.startswith("_")]
_GIVEN = ("features", "entities", "entity_features", "rngs")  # arguments of a model that a config cannot set


class Parts(NamedTuple):
    """The objects that a config describes."""

    task: Task
    make_model: Callable[[nnx.Rngs], SequenceModel]
    training: TrainConfig


def build_parts(config: Mapping[str, Any]) -> Parts:
    """Returns task, model and settings of a run from its whole config.

    Its key "folder", present for a recipe outside this package, is a folder for modules of MODULE:FACTORY, besides
    `sys.path`.

    Raises:
      ValueError: if a section is missing or unknown, or as raised by the three builders below.
    """
    _check_known("config", config, (*_SECTIONS, FOLDER))
    missing = [name for name in _SECTIONS if not isinstance(config.get(name), Mapping)]
    if missing:
        raise ValueError(f"the config lacks the section {missing[0]}; it needs {', '.join(_SECTIONS)}.")
    folder = config.get(FOLDER)
    task = build_task(config["task"], folder)
    return Parts(task, build_make_model(config["model"], task, folder), build_training(config["training"]))


def build_task(config: Mapping[str, Any], folder: str | None = None) -> Task:
    """Returns the task `config["name"]`; the other keys are its arguments.

    Args:
      config: section "task"; its name is a name of the registry or MODULE:FACTORY.
      folder: folder of a module that is not on `sys.path`.

    Raises:
      ValueError: if the task or a key is unknown, or an argument is out of range, or the task is incomplete.
    """
    name, settings = _split_name("task", config, TASKS)
    factory = load_task(name, folder)
    _check_keys(f"task {name}", settings, factory)
    with _as_value_error():
        task = factory(**settings)
    if lacking := [member for member in _TASK_MEMBERS if member not in dir(task)]:
        raise ValueError(f"task {name} lacks {', '.join(lacking)}: see mnm_jax.training.Task and docs/extend.md.")
    return task


def build_make_model(
    config: Mapping[str, Any], task: Task, folder: str | None = None
) -> Callable[[nnx.Rngs], SequenceModel]:
    """Returns a function that makes the model `config["name"]` for a task from random keys.

    Args:
      config: section "model"; its name is a name of the registry or MODULE:FACTORY, a function as `ModelEntry.make`.
        The other keys are arguments of that function, `readout_features`, the number of hidden units between cell and
        logits (0: none), and `dropout` (see `SequenceModel`).
      task: the task.
      folder: folder of a module that is not on `sys.path`.

    Raises:
      ValueError: if the model or a key is unknown, a key is missing, the model does not fit the task, or a value is of
        another type or out of range; some values are checked when the model is made.
    """
    name, settings = _split_name("model", config, MODELS)
    make_cell = load(name, folder) if is_place(name) else MODELS[name].make
    if not {"features", "rngs"} <= inspect.signature(make_cell).parameters.keys():
        raise ValueError(f"model {name} must be a function (*, features, ..., rngs) that returns a cell.")
    shared = {"readout_features": settings.pop("readout_features", 0), "dropout": settings.pop("dropout", 0.0)}
    given: dict[str, int] = {"features": task.input_features}
    parameters = _check_keys(f"model {name}", settings, make_cell, given=_GIVEN)
    with _as_value_error():
        check_sizes(least=0, readout_features=shared["readout_features"])
        check_fraction(dropout=shared["dropout"])
        check_sizes(**{key: value for key, value in settings.items() if _is_size(parameters[key], value)})
        check_flags(**{key: value for key, value in settings.items() if parameters[key].annotation is bool})
    if "entities" in inspect.signature(make_cell).parameters:
        entities, entity_features = optional_member(task, "entity_shape")
        if not entities:
            raise ValueError(
                f"model {name} needs a task with entities (task.entities >= 1), got {task.name} with "
                f"entity_shape={(entities, entity_features)}."
            )
        given |= {"entities": entities, "entity_features": entity_features}

    def make_model(rngs: nnx.Rngs) -> SequenceModel:
        with _as_value_error():
            cell = make_cell(**given, rngs=rngs, **settings)
            return SequenceModel(task.encoder(rngs), cell, task.output_features, **shared, rngs=rngs)

    return make_model


def build_training(config: Mapping[str, Any]) -> TrainConfig:
    """Returns the settings of the training loop.

    Raises:
      ValueError: if a key is unknown or missing, or a value is out of range.
    """
    _check_keys("training", config, TrainConfig)
    with _as_value_error():
        return TrainConfig(**config)


def count_parameters(make_model: Callable[[nnx.Rngs], SequenceModel]) -> int:
    """Returns the number of learned values of a model.

    Only the shapes are computed, which raises the errors of wrong sizes and missing data before any file is written.
    """
    shapes = nnx.eval_shape(lambda: nnx.state(make_model(nnx.Rngs(0)), nnx.Param))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@contextlib.contextmanager
def _as_value_error() -> Iterator[None]:
    """Raises the TypeError or OverflowError of a constructor as a ValueError, since the value in the config is wrong.

    An OverflowError means a number that is too large for the arrays it describes.
    """
    try:
        yield
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _split_name(section: str, config: Mapping[str, Any], known: Collection[str]) -> tuple[str, dict[str, Any]]:
    settings = dict(config)
    name = settings.pop("name", None)
    if not is_place(name):
        check_choice(f"{section}.name", name, known)
    return name, settings


def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    """Returns the parameters of a function, whose annotations are text under `from __future__ import annotations`."""
    try:
        return inspect.signature(function, eval_str=True).parameters
    except Exception:  # a type that is imported for type checkers only, or text that is no type
        return inspect.signature(function).parameters


def _is_size(parameter: inspect.Parameter, value: Any) -> bool:
    annotation = parameter.annotation
    return annotation is int or (annotation == int | None and value is not None)


def _check_keys(
    where: str, settings: Mapping[str, Any], function: Callable, given: tuple[str, ...] = ()
) -> dict[str, inspect.Parameter]:
    """Raises ValueError unless `settings` are arguments of `function` with all that have no default; returns these."""
    every = _parameters(function)
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = {name: p for name, p in every.items() if name not in given and p.kind not in starred}
    _check_known(where, settings, parameters)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in settings:
            raise ValueError(f"{where} lacks the key {name!r}; known: {', '.join(parameters)}.")
    return parameters


def _check_known(where: str, settings: Mapping[str, Any], known: Collection[str]) -> None:
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{where} has an unknown key {key!r}; {hint}known: {', '.join(known)}.")
