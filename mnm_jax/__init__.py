"""Metalearned neural memory in JAX and Flax.

Everything named here is public; modules and names that start with `_` are not.
"""

from mnm_jax.cells import CellOutput, ChainCell, DNCCell, LSTMCell, MNMCell, NTMCell, PlasticCell, RNNCell, SALUCell
from mnm_jax.layers import NeuralMemoryBlock
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
)
from mnm_jax.recurrence import choose_form, unroll

__version__ = "0.1.0"

__all__ = [
    "CellOutput",
    "ChainCell",
    "DNCCell",
    "GatedState",
    "LSTMCell",
    "MNMCell",
    "Memory",
    "MemoryParams",
    "MemoryState",
    "NTMCell",
    "NeuralMemoryBlock",
    "PlasticCell",
    "RNNCell",
    "SALUCell",
    "WriteInfo",
    "WriteOptions",
    "choose_form",
    "custom_memory",
    "gradient_memory",
    "local_memory",
    "matrix_memory",
    "unroll",
]
