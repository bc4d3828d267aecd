"""Products of few rows within a kernel.

A matrix unit of a TPU takes any number of rows. Triton's products need at least 16, so on a GPU the products here are
sums of elementwise products, computed row by row for large matrices, whose weights then stay in their registers.

Shape letters: `H` rows, `I`/`O` columns.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
_SMALL = 8192  # elementwise products that are summed at once


class Dots(NamedTuple):
    """Products of few rows.

    Attributes:
      times: returns X W, `[H, I], [I, O] -> [H, O]`.
      times_transposed: returns C W^T, `[H, O], [I, O] -> [H, I]`.
      outer: returns X^T D, `[H, I], [H, O] -> [I, O]`.
    """

    times: Callable[[Array, Array], Array]
    times_transposed: Callable[[Array, Array], Array]
    outer: Callable[[Array, Array], Array]


def row(x: Array, h: int | Array) -> Array:
    """Returns row h, `[1, F]`."""
    return jnp.sum(jnp.where(_index(x, 0) == h, x, 0), 0, keepdims=True)


def column(x: Array, h: int | Array) -> Array:
    """Returns column h, `[H, 1]`."""
    return jnp.sum(jnp.where(_index(x, 1) == h, x, 0), 1, keepdims=True)


def _index(x: Array, axis: int) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)


def _join(rows: list[Array]) -> Array:
    """Returns rows `[1, F]` as one matrix; the inverse of `row`."""
    joined = jnp.broadcast_to(rows[0], (len(rows), rows[0].shape[1]))
    return reduce(lambda joined, h: jnp.where(_index(joined, 0) == h, rows[h], joined), range(1, len(rows)), joined)


def _times(x: Array, w: Array) -> Array:
    if x.size * w.shape[1] <= _SMALL:
        return jnp.sum(jnp.expand_dims(x, 2) * jnp.expand_dims(w, 0), 1)
    return _join([jnp.sum(row(x, h).T * w, 0, keepdims=True) for h in range(len(x))])


def _times_transposed(c: Array, w: Array) -> Array:
    if c.size * w.shape[0] <= _SMALL:
        return jnp.sum(jnp.expand_dims(c, 1) * jnp.expand_dims(w, 0), 2)
    return _join([jnp.sum(row(c, h) * w, 1, keepdims=True).T for h in range(len(c))])


def _outer(x: Array, delta: Array) -> Array:
    return reduce(jnp.add, [row(x, h).T * row(delta, h) for h in range(len(x))])


SUMS = Dots(_times, _times_transposed, _outer)
_dot = partial(jax.lax.dot_general, precision=jax.lax.Precision.HIGHEST)
PRODUCTS = Dots(
    times=lambda x, w: _dot(x, w, (((1,), (0,)), ((), ()))),
    times_transposed=lambda c, w: _dot(c, w, (((1,), (1,)), ((), ()))),
    outer=lambda x, delta: _dot(x, delta, (((0,), (0,)), ((), ()))),
)
