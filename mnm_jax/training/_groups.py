"""A batch worked through in groups of examples, so that what a group needs stays in the cache.

The fast weights of a neural memory and their cotangents are read and written at every step of a sequence. Those of a
whole batch do not fit the cache of a CPU, and moving them takes longer than computing with them.

Shape letters: `T` time steps, `B` examples.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

CACHE_BYTES = 4 * 2**20  # of fast weights and cotangents; measured, see RESULTS.md: twice or half of it is no better
LEAST = 8  # examples, below which the products with slow weights are too small


def choose_groups(cell: nnx.RNNCellBase | None, examples: int, platform: str) -> int:
    """Into how many groups the examples of one device are divided: 1 but for a CPU and a memory that is large.

    The least number that divides the examples and leaves groups whose weights and cotangents take `CACHE_BYTES`.
    """
    if platform != "cpu" or not hasattr(cell, "memory_params"):
        return 1
    each = 2 * sum(w.size * w.dtype.itemsize for w in jax.tree.leaves(cell.memory_params.get_value().weights))
    fitting = max(LEAST, CACHE_BYTES // each)
    return next(n for n in range(1, examples + 1) if examples % n == 0 and examples // n <= fitting)


def value_and_grad_in_groups(function: Callable, groups: int) -> Callable:
    """`jax.value_and_grad(function, has_aux=True)` of `(params, batch)`, one group after the other.

    function: `(params, batch) -> (value, aux)`, both sums over the examples of the batch, whose leaves are
    `[T, B, ...]`. Group g has the examples g, g + groups, ...: a batch that lies on several devices keeps a part of
    every group on each.
    """
    value_and_grad = jax.value_and_grad(function, has_aux=True)
    if groups == 1:
        return value_and_grad

    def cut(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        parts = leaf.reshape(leaf.shape[0], leaf.shape[1] // groups, groups, *leaf.shape[2:])
        return jnp.moveaxis(parts, 2, 0)

    def in_groups(params: Any, batch: Any) -> Any:
        def add(total: Any, group: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, value_and_grad(params, group)), None

        parts = jax.tree.map(cut, batch)
        shapes = jax.eval_shape(value_and_grad, params, jax.tree.map(lambda leaf: leaf[0], parts))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, zeros, parts)[0]

    return in_groups
