"""Contracts for testing your own cell, memory, layer or task.

`check_cell`, `check_memory`, `check_layer` and `check_task` check all contracts of their kind. The contracts of cells,
memories and layers are also separate functions, listed in the docstrings of the first three. A failure raises an
AssertionError whose message begins with the contract's name or, for a task, with the task's.
"""

from mnm_jax.testing._cell_programs import (
    check_cell_compilation,
    check_cell_derivatives,
    check_cell_devices,
    check_cell_donation,
    check_cell_export,
    check_cell_forms,
    check_cell_pickle,
)
from mnm_jax.testing._cell_time import (
    check_cell_carry,
    check_cell_causality,
    check_cell_dtypes,
    check_cell_empty,
    check_cell_extremes,
    check_cell_flax_rnn,
    check_cell_isolation,
    check_cell_masking,
    check_cell_resets,
    check_cell_stream,
    check_cell_unroll,
)
from mnm_jax.testing._cells import check_cell
from mnm_jax.testing._layers import (
    check_layer,
    check_layer_carry,
    check_layer_causality,
    check_layer_compilation,
    check_layer_devices,
    check_layer_dtypes,
    check_layer_extremes,
    check_layer_isolation,
    check_layer_masking,
    check_layer_steps,
)
from mnm_jax.testing._memories import (
    check_memory,
    check_memory_derivatives,
    check_memory_dtypes,
    check_memory_equality,
    check_memory_extremes,
    check_memory_forms,
    check_memory_head_order,
    check_memory_isolation,
    check_memory_reads,
    check_memory_zero_rate,
)
from mnm_jax.testing._tasks import check_task

__all__ = [
    "check_cell",
    "check_cell_carry",
    "check_cell_causality",
    "check_cell_compilation",
    "check_cell_derivatives",
    "check_cell_devices",
    "check_cell_donation",
    "check_cell_dtypes",
    "check_cell_empty",
    "check_cell_export",
    "check_cell_extremes",
    "check_cell_flax_rnn",
    "check_cell_forms",
    "check_cell_isolation",
    "check_cell_masking",
    "check_cell_pickle",
    "check_cell_resets",
    "check_cell_stream",
    "check_cell_unroll",
    "check_layer",
    "check_layer_carry",
    "check_layer_causality",
    "check_layer_compilation",
    "check_layer_devices",
    "check_layer_dtypes",
    "check_layer_extremes",
    "check_layer_isolation",
    "check_layer_masking",
    "check_layer_steps",
    "check_memory",
    "check_memory_derivatives",
    "check_memory_dtypes",
    "check_memory_equality",
    "check_memory_extremes",
    "check_memory_forms",
    "check_memory_head_order",
    "check_memory_isolation",
    "check_memory_reads",
    "check_memory_zero_rate",
    "check_task",
]
