"""Gradients of a batch computed in micro-batches whose fast weights fit into the cache.

The fast weights of a neural memory and their cotangents are read and written at every step of a sequence. The weights
of a whole batch exceed a CPU's cache, and moving them then takes longer than computing with them.

Shape letters: `T` time steps, `B` examples.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax._checks import check_flags, check_functions, check_sizes
from mnm_jax.recurrence import MemoryCell

# Bytes of fast weights and cotangents per micro-batch. Measured: twice as many and half as many were not faster.
CACHE_BYTES = 4 * 2**20
# Micro-batches of this size are not divided further: the products with slow weights would be too small to be fast.
MIN_EXAMPLES = 8


def choose_micro_batches(cell: nnx.Module | None, examples: int, platform: str) -> int:
    """Returns the number of micro-batches per device.

    It is 1, except on a CPU whose cache cannot hold the batch's fast weights. There it is the smallest divisor of
    `examples` for which the fast weights and cotangents of a micro-batch take at most `CACHE_BYTES`, or for which a
    micro-batch has at most `MIN_EXAMPLES` examples.

    Args:
      cell: the model's cell; only a `MemoryCell` has fast weights.
      examples: number of examples per device.
      platform: the devices' platform, such as "cpu".
    """
    check_sizes(examples=examples)
    if platform != "cpu" or not isinstance(cell, MemoryCell):
        return 1
    weights = jax.tree.leaves(cell.memory_params.get_value().weights)
    bytes_per_example = 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in weights)
    fitting = max(MIN_EXAMPLES, CACHE_BYTES // bytes_per_example)
    return next(n for n in range(1, examples + 1) if examples % n == 0 and examples // n <= fitting)


def value_and_grad_in_micro_batches(function: Callable, count: int, *, carries: bool = False) -> Callable:
    """Returns `jax.value_and_grad(function, has_aux=True)`, computed in micro-batches one at a time.

    Args:
      function: `(params, batch) -> (value, aux)`, where both results are sums over the examples of the batch, whose
        leaves are `[T, B, ...]`.
      count: number of micro-batches. Micro-batch g holds the examples g, g + count, ..., so that every device holds a
        part of every micro-batch if the batch is divided over devices.
      carries: whether aux is `(sums, carry)`, where the carry has leaves `[B, ...]` of the examples, which are not
        added.
    """
    check_functions(function=function)
    check_sizes(count=count)
    check_flags(carries=carries)
    value_and_grad = jax.value_and_grad(function, has_aux=True)
    if count == 1:
        return value_and_grad

    def split(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        if leaf.shape[1] % count:
            raise ValueError(f"count must divide the examples of the batch, got {count=} for leaves {leaf.shape}.")
        parts = leaf.reshape(leaf.shape[0], leaf.shape[1] // count, count, *leaf.shape[2:])
        return jnp.moveaxis(parts, 2, 0)

    def join(leaf: jax.Array) -> jax.Array:
        return jnp.moveaxis(leaf, 0, 1).reshape(-1, *leaf.shape[2:])

    def in_micro_batches(params: Any, batch: Any) -> Any:
        def compute(part: Any) -> tuple[Any, Any]:
            (value, aux), grads = value_and_grad(params, part)
            aux, carry = aux if carries else (aux, None)
            return ((value, aux), grads), carry

        def add(total: Any, part: Any) -> tuple[Any, Any]:
            sums, carry = compute(part)
            return jax.tree.map(jnp.add, total, sums), carry

        parts = jax.tree.map(split, batch)
        shapes, _ = jax.eval_shape(compute, jax.tree.map(lambda leaf: leaf[0], parts))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        ((value, aux), grads), carry = jax.lax.scan(add, zeros, parts)
        return (value, (aux, jax.tree.map(join, carry)) if carries else aux), grads

    return in_micro_batches
