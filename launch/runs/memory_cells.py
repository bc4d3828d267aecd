"""Makers of the cells with a neural memory, for the registry of models.

Besides sizes, their settings are the options of the cell, of the memory and of `WriteOptions` that a config can hold:
numbers, texts and flags, with their defaults.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from flax import nnx

from mnm_jax.cells import ChainCell, MNMCell
from mnm_jax.memory import Memory, WriteOptions

_HELD = (int, bool, float, str, int | None, float | None, str | None)
_EXCLUDED = ("out_features",)  # `SequenceModel` has the read-out
_GROUPS = ("of_cell", "of_memory")


def mnm_cell(make_memory: Callable[..., Memory]) -> Callable[..., MNMCell]:
    """Returns `(*, features, hidden_features, memory_features, rngs, memory_layers, memory_width, ...) -> MNMCell`.

    The memory has `memory_layers` layers; its hidden layers have `memory_width` units, or `memory_features` if that is
    None.
    """

    def make(
        *,
        features: int,
        hidden_features: int,
        memory_features: int,
        rngs: nnx.Rngs,
        memory_layers: int = 3,
        memory_width: int | None = None,
        of_cell: Any,
        of_memory: Any,
    ) -> MNMCell:
        width = memory_features if memory_width is None else memory_width
        sizes = (width,) * (memory_layers - 1)
        memory = make_memory(memory_features, memory_features, hidden_sizes=sizes, **of_memory)
        return MNMCell(features, hidden_features, memory, rngs=rngs, **of_cell)

    return _with_options(make, MNMCell.__init__, make_memory)


def chain_cell(make_memory: Callable[..., Memory]) -> Callable[..., ChainCell]:
    """Returns `(*, features, entities, entity_features, hidden_features, rngs, memory_layers, ...) -> ChainCell`.

    The memory has `memory_layers` layers; its hidden layers have `memory_width` units, or `entity_features` if that is
    None.
    """

    def make(
        *,
        features: int,
        entities: int,
        entity_features: int,
        hidden_features: int,
        rngs: nnx.Rngs,
        relation_features: int = 8,
        memory_layers: int = 1,
        memory_width: int | None = None,
        of_cell: Any,
        of_memory: Any,
    ) -> ChainCell:
        width = entity_features if memory_width is None else memory_width
        sizes = (width,) * (memory_layers - 1)
        memory = make_memory(entity_features * relation_features, entity_features, hidden_sizes=sizes, **of_memory)
        return ChainCell(features, hidden_features, memory, entities=entities, rngs=rngs, **of_cell)

    return _with_options(make, ChainCell.__init__, make_memory)


def _with_options(make: Callable, init_cell: Callable[..., None], make_memory: Callable[..., Memory]) -> Callable:
    """Returns `make` with the options of cell, memory and writes in place of its arguments `of_cell` and `of_memory`.

    Raises:
      ValueError: if two of the three have an option of the same name.
    """
    of_cell, of_memory, of_writes = _options(init_cell), _options(make_memory), _options(WriteOptions)

    if len(of_cell | of_memory | of_writes) < len(of_cell) + len(of_memory) + len(of_writes):
        raise ValueError(f"an option has one place, got {list(of_cell)}, {list(of_memory)} and {list(of_writes)}.")

    @functools.wraps(make)
    def make_with_options(**settings: Any) -> nnx.RNNCellBase:
        chosen_cell, chosen_memory, chosen_writes = (
            {name: settings.pop(name) for name in options if name in settings}
            for options in (of_cell, of_memory, of_writes)
        )
        chosen_memory["options"] = WriteOptions(**chosen_writes)
        return make(**settings, of_cell=chosen_cell, of_memory=chosen_memory)

    own = {name: p for name, p in inspect.signature(make).parameters.items() if name not in _GROUPS}
    parameters = [*own.values(), *(of_cell | of_memory | of_writes).values()]
    make_with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return make_with_options


def _options(function: Callable) -> dict[str, inspect.Parameter]:
    """Returns the arguments of a function with a default value that a config can hold, by name."""
    return {
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty and parameter.annotation in _HELD and name not in _EXCLUDED
    }
