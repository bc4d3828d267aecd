"""Checks of what a task returns, by types and shapes alone, while an update is traced.

Shape letters: `T` time steps, `B` examples, `C` classes.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnm_jax.training._task import Batch, Mean, Task


def check_batch(task: Task, batch: Batch, examples: int | None = None) -> None:
    """Raises ValueError if the arrays of a batch do not have the shapes and types that `Batch` names.

    Args:
      task: the task.
      batch: the batch.
      examples: the expected number of examples `B`; None: not checked.
    """
    shape = jnp.shape(batch.mask)
    if len(shape) != 2:
        raise ValueError(f"task {task.name}: mask must be [T, B], got {_describe(batch.mask)}.")
    if examples not in (None, shape[1]):
        raise ValueError(
            f"task {task.name}: sample must return {examples} examples, got a mask of {shape}; time is first, [T, B]."
        )
    for name, array in batch.flags.items():
        if jnp.result_type(array) != jnp.bool_ or jnp.shape(array) != shape:
            raise ValueError(f"task {task.name}: {name} must be bool of {shape}, got {_describe(array)}.")
    for name in ("inputs", "targets", "loss_mask"):
        for array in jax.tree.leaves(getattr(batch, name)):
            if jnp.shape(array)[:2] != shape:
                raise ValueError(
                    f"task {task.name}: {name} must begin with the shape of mask, {shape}, got {_describe(array)}: "
                    "broadcast it."
                )


def check_metrics(task: Task, logits: jax.Array, batch: Batch) -> None:
    """Raises ValueError unless the metrics of a batch map names to `Mean`s; logits `[T, B, C]`; nothing is computed."""
    metrics = jax.eval_shape(lambda logits: task.metrics(logits, batch), logits)
    if not isinstance(metrics, Mapping):
        raise ValueError(f"task {task.name}: metrics must return a mapping of means, got {type(metrics).__name__}.")
    for name, mean in metrics.items():
        check_mean(task, f"metrics[{name!r}]", mean)


def check_mean(task: Task, name: str, mean: Any) -> None:
    """Raises ValueError unless a value is a `Mean` of two scalars."""
    if not isinstance(mean, Mean) or jnp.shape(mean.total) or jnp.shape(mean.count):
        found = ", ".join(map(_describe, jax.tree.leaves(mean)))
        raise ValueError(
            f"task {task.name}: {name} must be a Mean of a total and a count, each one number, got "
            f"{type(mean).__name__} ({found})."
        )


def _describe(array: Any) -> str:
    return f"{getattr(array, 'dtype', type(array).__name__)}{list(np.shape(array))}"
