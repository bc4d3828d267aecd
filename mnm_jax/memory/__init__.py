"""The neural memory as pure functions of pytrees. Needs jax only."""

from mnm_jax.memory.build import gradient_memory, local_memory
from mnm_jax.memory.dense import MemoryState
from mnm_jax.memory.types import Memory, MemoryParams, ReadPath, Storage, TargetMaps, WriteInfo

__all__ = [
    "Memory",
    "MemoryParams",
    "MemoryState",
    "ReadPath",
    "Storage",
    "TargetMaps",
    "WriteInfo",
    "gradient_memory",
    "local_memory",
]
