"""The neural memory as pure functions of pytrees. The package needs only jax.

`Memory` is the interface; `gradient_memory`, `local_memory`, `matrix_memory`, `custom_memory` and `rule_memory` return
memories. The other names are types and functions for your own write rules.
"""

from mnm_jax.memory._build import gradient_memory, local_memory, matrix_memory, rule_memory
from mnm_jax.memory._custom import custom_memory
from mnm_jax.memory._gated import GatedState
from mnm_jax.memory._memory import Memory
from mnm_jax.memory._network import Activations, Network, backward, forward
from mnm_jax.memory._options import WriteOptions
from mnm_jax.memory._rules import ErrorRule, Rule, SnapshotRule
from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._types import MemoryParams, Pair, Storage, TargetMaps, WriteInfo

__all__ = [
    "Activations",
    "ErrorRule",
    "GatedState",
    "Memory",
    "MemoryParams",
    "MemoryState",
    "Network",
    "Pair",
    "Rule",
    "SnapshotRule",
    "Storage",
    "TargetMaps",
    "WriteInfo",
    "WriteOptions",
    "backward",
    "custom_memory",
    "forward",
    "gradient_memory",
    "local_memory",
    "matrix_memory",
    "rule_memory",
]
