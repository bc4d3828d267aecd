"""Tasks that draw their sequences: the curriculum and the evaluation sets."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mnm_jax._checks import check_choice, check_sizes
from mnm_jax.training import Batch

Array = jax.Array

_SEEDS = {"valid": 1, "test": 2}


def growth_at(step: Array | int | None, curriculum: int) -> Array:
    """Returns the progress of a curriculum over `curriculum` updates, up to 1, after `step` updates; None: after it."""
    if not curriculum or step is None:
        return jnp.float32(1)
    return jnp.minimum(jnp.float32(1), jnp.asarray(step + 1, jnp.float32) / curriculum)


def draw_up_to(key: Array, low: int, high: int, growth: Array) -> Array:
    """Returns an integer, uniform from `low` to `low + growth (high - low)`, rounded up."""
    most = low + jnp.ceil((high - low) * growth).astype(jnp.int32)
    return jax.random.randint(key, (), low, most + 1)


def evaluation_set(task: Any, split: str, count: int, batch_size: int) -> Callable[[], Iterator[Batch]]:
    """Returns a source of `count` batches of a task, the same ones on every call.

    The keys are derived from seeds reserved for evaluation, so that no run with a small seed trains on these sequences.

    Args:
      task: a task with `sample`; hashable.
      split: "valid" or "test"; the two share no sequence.
      count: number of batches.
      batch_size: examples of each batch, `B`.

    Raises:
      TypeError, ValueError: another split, or a batch size that is not a whole number above 0.
    """
    check_choice("split", split, _SEEDS)
    check_sizes(batch_size=batch_size)
    return partial(_draw_all, task, _SEEDS[split], count, batch_size)


def _draw_all(task: Any, seed: int, count: int, batch_size: int) -> Iterator[Batch]:
    key = jax.random.fold_in(jax.random.key(2**31 - 1), seed)
    for index in range(count):
        yield _draw(task, jax.random.fold_in(key, index), batch_size)


@partial(jax.jit, static_argnums=(0, 2))
def _draw(task: Any, key: jax.Array, batch_size: int) -> Batch:
    return task.sample(key, batch_size)
