"""Metalearned neural memory in JAX and Flax.

Everything named in `__all__` is public; modules and names that start with `_` are not. Names are imported at their
first use, so that `import mnm_jax.memory` needs only jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnm_jax.cells import CellOutput, ChainCell, DNCCell, LSTMCell, MNMCell, NTMCell, PlasticCell, RNNCell, SALUCell
    from mnm_jax.layers import NeuralMemoryLayer
    from mnm_jax.memory import (
        GatedState,
        Memory,
        MemoryParams,
        MemoryState,
        WriteInfo,
        WriteOptions,
        custom_memory,
        gradient_memory,
        local_memory,
        matrix_memory,
        rule_memory,
    )
    from mnm_jax.recurrence import (
        MemoryCell,
        ParamTree,
        choose_form,
        choose_micro_batch,
        unroll,
        unroll_memory,
        value_and_grad,
    )

__version__ = "0.1.0"

__all__ = [
    "CellOutput",
    "ChainCell",
    "DNCCell",
    "GatedState",
    "LSTMCell",
    "MNMCell",
    "Memory",
    "MemoryCell",
    "MemoryParams",
    "MemoryState",
    "NTMCell",
    "NeuralMemoryLayer",
    "ParamTree",
    "PlasticCell",
    "RNNCell",
    "SALUCell",
    "WriteInfo",
    "WriteOptions",
    "choose_form",
    "choose_micro_batch",
    "custom_memory",
    "gradient_memory",
    "local_memory",
    "matrix_memory",
    "rule_memory",
    "unroll",
    "unroll_memory",
    "value_and_grad",
]

# The packages that define these names, in the order of their imports.
_PACKAGES = ("memory", "recurrence", "cells", "layers")
_MODULES = (*_PACKAGES, "analysis", "export", "testing", "training")


def __getattr__(name: str) -> Any:
    """Imports a public name or a module of this package at its first use, and returns it (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in __all__:
        for package in _PACKAGES:
            module = importlib.import_module(f"{__name__}.{package}")
            if name in module.__all__:
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Returns the public names and the modules, including those that are not imported yet."""
    return sorted({*globals(), *__all__, *_MODULES})
