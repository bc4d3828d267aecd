"""Evaluation sets of tasks that draw their sequences."""

from collections.abc import Iterable
from functools import partial

import jax

from mnm_jax.training._task import Batch, Task


def draw_batches(task: Task, seed: int, count: int, batch_size: int) -> Iterable[Batch]:
    """The same `count` batches on every call, with keys far from those of training, whose seeds are small numbers."""
    key = jax.random.fold_in(jax.random.key(2**31 - 1), seed)
    for index in range(count):
        yield _draw(task, jax.random.fold_in(key, index), batch_size)


@partial(jax.jit, static_argnums=(0, 2))
def _draw(task: Task, key: jax.Array, batch_size: int) -> Batch:
    return task.sample(key, batch_size)
