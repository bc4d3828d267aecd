"""Runs cells over sequences, in several execution forms."""

from mnm_jax.recurrence._forms import FORMS, choose_form
from mnm_jax.recurrence._protocol import MemoryCell
from mnm_jax.recurrence._unroll import unroll

__all__ = ["FORMS", "MemoryCell", "choose_form", "unroll"]
