"""From a config to objects: the only place where tasks and models go by name."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
from flax import nnx

from mnm_jax.cells import ChainCell, DNCCell, LSTMCell, MNMCell, NTMCell, PlasticCell, RNNCell, SALUCell
from mnm_jax.memory import Memory, WriteOptions, gradient_memory, local_memory
from mnm_jax.training import SequenceModel, Task, TrainConfig
from tasks.algorithmic import AssociativeRecall, Copy, DoubleCopy, Pairs, PrioritySort, RepeatCopy
from tasks.babi import Babi
from tasks.dictionary import Dictionary
from tasks.maze import MazeTask

_GIVEN = ("features", "entities", "entity_features")  # what a model learns from the task
_ON_BITS = (Copy, RepeatCopy, DoubleCopy, AssociativeRecall, PrioritySort, Pairs)
TASKS = {"dictionary": Dictionary, "babi": Babi} | {task.name: task for task in (*_ON_BITS, MazeTask)}


def build_task(config: Mapping[str, Any]) -> Task:
    """The task `config.name`; the other keys are its arguments.

    Raises:
        ValueError: an unknown task, an unknown key, or an argument out of range.
    """
    name, settings = _split_name("task", config, TASKS)
    _check_keys(f"task {name}", settings, TASKS[name])
    return TASKS[name](**settings)


def build_make_model(config: Mapping[str, Any], task: Task) -> Callable[[nnx.Rngs], SequenceModel]:
    """The model `config.name` for a task, as a function of its random keys; the other keys are its settings.

    "lstm", "rnn", "plastic", "neuromodulated": hidden_features. "lstm-salu": hidden_features, memory_features
    (`K = V`), slots. "ntm", "dnc": hidden_features, memory_features (of a slot), slots, heads (that read; in the NTM as
    many write). "mnm-p", "mnm-g": hidden_features, heads, memory_features (`K`, `V` and the widths in between),
    memory_layers (`L`), step_size, and of `WriteOptions` key_norm, max_norm, inner_steps, momentum, forget. "chain-p",
    "chain-g": the same rules in the cell that reads `hops` times before it writes, with a linear memory:
    hidden_features, heads, hops, relation_features (`R`), step_size; for a task whose inputs end with the codes of
    entities. All: readout_features, hidden units between cell and logits.

    Raises:
        ValueError: an unknown model, an unknown or missing key, or a model that does not go with the task. Sizes are
        checked when the model is made.
    """
    name, settings = _split_name("model", config, _CELLS)
    readout_features = settings.pop("readout_features", 0)
    given = {"features": task.input_features}
    _check_keys(f"model {name}", settings, _CELLS[name], given=(*_GIVEN, "rngs"))
    if "entities" in inspect.signature(_CELLS[name]).parameters:
        entities, entity_features = getattr(task, "entity_shape", (0, 0))
        if not entities:
            raise ValueError(f"model {name} needs a task with entities (babi, task.entities >= 1), got {task.name}.")
        given |= {"entities": entities, "entity_features": entity_features}

    def make_model(rngs: nnx.Rngs) -> SequenceModel:
        cell = _CELLS[name](**given, rngs=rngs, **settings)
        return SequenceModel(task.encoder(rngs), cell, task.output_features, readout_features, rngs=rngs)

    return make_model


def count_parameters(make_model: Callable[[nnx.Rngs], SequenceModel]) -> int:
    """How many numbers a model has to learn; made without its numbers, which finds wrong sizes and missing data."""
    shapes = nnx.eval_shape(lambda: nnx.state(make_model(nnx.Rngs(0)), nnx.Param))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def build_training(config: Mapping[str, Any]) -> TrainConfig:
    """The settings of the run.

    Raises:
        ValueError: an unknown or missing key, or a value out of range.
    """
    settings = dict(config)
    _check_keys("training", settings, TrainConfig)
    return TrainConfig(**settings)


class Parts(NamedTuple):
    """What a config describes."""

    task: Task
    make_model: Callable[[nnx.Rngs], SequenceModel]
    training: TrainConfig


def build_parts(config: Mapping[str, Any]) -> Parts:
    """Task, model and settings of a run from its whole config.

    Raises:
        ValueError: as the three builders, or a section too many or too few.
    """
    _check_sections(config)
    task = build_task(config["task"])
    return Parts(task, build_make_model(config["model"], task), build_training(config["training"]))


def _check_sections(config: Mapping[str, Any]) -> None:
    """Raises ValueError unless config has the sections task, model and training, and nothing else."""
    sections = ("task", "model", "training")
    _check_known("config", config, sections)
    lacking = [name for name in sections if not isinstance(config.get(name), Mapping)]
    if lacking:
        raise ValueError(f"the config lacks the section {lacking[0]}; it needs {', '.join(sections)}.")


def _plain(cell: Callable[..., nnx.RNNCellBase]) -> Callable[..., nnx.RNNCellBase]:
    def make(*, features: int, hidden_features: int, rngs: nnx.Rngs) -> nnx.RNNCellBase:
        if hidden_features < 1:
            raise ValueError(f"hidden_features must be >= 1, got {hidden_features}.")
        return cell(features, hidden_features, rngs=rngs)

    return make


def _salu(*, features: int, hidden_features: int, memory_features: int, slots: int, rngs: nnx.Rngs) -> SALUCell:
    sizes = {"key_size": memory_features, "value_size": memory_features, "slots": slots}
    return SALUCell(features, hidden_features, **sizes, rngs=rngs)


def _ntm(
    *, features: int, hidden_features: int, memory_features: int, slots: int, rngs: nnx.Rngs, heads: int = 1
) -> NTMCell:
    sizes = {"slots": slots, "slot_features": memory_features, "read_heads": heads, "write_heads": heads}
    return NTMCell(features, hidden_features, **sizes, rngs=rngs)


def _dnc(
    *, features: int, hidden_features: int, memory_features: int, slots: int, rngs: nnx.Rngs, heads: int = 1
) -> DNCCell:
    sizes = {"slots": slots, "slot_features": memory_features, "read_heads": heads}
    return DNCCell(features, hidden_features, **sizes, rngs=rngs)


def _mnm(make_memory: Callable[..., Memory]) -> Callable[..., MNMCell]:
    def make(
        *,
        features: int,
        hidden_features: int,
        memory_features: int,
        rngs: nnx.Rngs,
        heads: int = 1,
        memory_layers: int = 3,
        step_size: str = "normalised",
        key_norm: str | None = None,
        max_norm: float | None = None,
        inner_steps: int = 1,
        momentum: bool = False,
        forget: bool = False,
    ) -> MNMCell:
        if memory_layers < 1:
            raise ValueError(f"memory_layers must be >= 1, got {memory_layers}.")
        hidden_sizes = (memory_features,) * (memory_layers - 1)
        options = WriteOptions(key_norm, max_norm, inner_steps, None, momentum, forget)
        memory = make_memory(
            memory_features, memory_features, hidden_sizes=hidden_sizes, step_size=step_size, options=options
        )
        return MNMCell(features, hidden_features, memory, heads=heads, rngs=rngs)

    return make


def _chain(make_memory: Callable[..., Memory]) -> Callable[..., ChainCell]:
    def make(
        *,
        features: int,
        entities: int,
        entity_features: int,
        hidden_features: int,
        rngs: nnx.Rngs,
        heads: int = 2,
        hops: int = 3,
        relation_features: int = 8,
        step_size: str = "normalised",
    ) -> ChainCell:
        key_size = entity_features * relation_features
        memory = make_memory(key_size, entity_features, hidden_sizes=(), step_size=step_size)
        return ChainCell(features, hidden_features, memory, entities=entities, heads=heads, hops=hops, rngs=rngs)

    return make


_CELLS = {
    "mnm-p": _mnm(local_memory),
    "mnm-g": _mnm(gradient_memory),
    "chain-p": _chain(local_memory),
    "chain-g": _chain(gradient_memory),
    "lstm": _plain(LSTMCell),
    "lstm-salu": _salu,
    "ntm": _ntm,
    "dnc": _dnc,
    "rnn": _plain(RNNCell),
    "plastic": _plain(PlasticCell),
    "neuromodulated": _plain(partial(PlasticCell, modulated=True)),
}
MODELS = tuple(_CELLS)


def _split_name(section: str, config: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    settings = dict(config)
    name = settings.pop("name", None)
    if name not in known:
        raise ValueError(f"{section}.name must be one of {', '.join(known)}, got {name!r}.")
    return name, settings


def _check_keys(where: str, settings: Mapping[str, Any], function: Callable, given: tuple[str, ...] = ()) -> None:
    """Raises ValueError unless `function(**settings)` has all it needs and nothing it does not know."""
    parameters = {name: p for name, p in inspect.signature(function).parameters.items() if name not in given}
    _check_known(where, settings, parameters)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in settings:
            raise ValueError(f"{where} lacks the key {name!r}; known: {', '.join(parameters)}.")


def _check_known(where: str, settings: Mapping[str, Any], known: Any) -> None:
    for key in settings:
        if key not in known:
            raise ValueError(f"{where} has an unknown key {key!r}; known: {', '.join(known)}.")
