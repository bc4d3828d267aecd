"""The neural memory as pure functions of pytrees. Needs jax only."""

from mnm_jax.memory._build import gradient_memory, local_memory, matrix_memory
from mnm_jax.memory._custom import custom_memory
from mnm_jax.memory._options import GatedState, WriteOptions
from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._types import Memory, MemoryParams, ReadPath, Storage, TargetMaps, WriteInfo

__all__ = [
    "GatedState",
    "Memory",
    "MemoryParams",
    "MemoryState",
    "ReadPath",
    "Storage",
    "TargetMaps",
    "WriteInfo",
    "WriteOptions",
    "custom_memory",
    "gradient_memory",
    "local_memory",
    "matrix_memory",
]
