"""Runs cells over sequences, in several execution forms."""

from mnm_jax._params import ParamTree
from mnm_jax.recurrence._forms import FORMS, choose_form
from mnm_jax.recurrence._micro_batches import choose_micro_batch, value_and_grad
from mnm_jax.recurrence._protocol import MemoryCell
from mnm_jax.recurrence._unroll import unroll
from mnm_jax.recurrence._unroll_memory import unroll_memory

__all__ = [
    "FORMS",
    "MemoryCell",
    "ParamTree",
    "choose_form",
    "choose_micro_batch",
    "unroll",
    "unroll_memory",
    "value_and_grad",
]
