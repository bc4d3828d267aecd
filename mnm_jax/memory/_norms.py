"""Norms of fast weights and of their changes, and products with a number per example.

Shape letter: `B` examples.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mnm_jax._precision import wide_dtype

Array = jax.Array


def limit(changes: Any, max_norm: float | None) -> Any:
    """Returns changes `[B, ...]` with the norm of all leaves together bounded by `WriteOptions.max_norm`."""
    if max_norm is None:
        return changes
    return scaled(changes, bound(norm(changes), max_norm))


def scaled(changes: Any, factor: Array) -> Any:
    """Returns changes `[B, ...]` times a factor `[B]`."""
    return jax.tree.map(lambda x: gated(factor, x), changes)


def bound(norm: Array, max_norm: float) -> Array:
    """Returns min(1, max_norm / norm) `[B]`, the factor that bounds a change of that norm."""
    most = float(max_norm)
    return jnp.where(norm > most, most / jnp.maximum(norm, most), 1)


def norm(tree: Any) -> Array:
    """Returns the norm `[B]` of all leaves `[B, ...]` together, in at least float32."""
    return safe_root(sum_of_squares(tree))


def sum_of_squares(tree: Any) -> Array:
    """Returns the square of `norm`."""
    leaves = jax.tree.leaves(tree)
    dtype = wide_dtype(leaves[0].dtype)
    return functools.reduce(jnp.add, [jnp.sum(jnp.square(x.astype(dtype)), tuple(range(1, x.ndim))) for x in leaves])


def safe_root(square: Array) -> Array:
    """Returns the square root, with derivative 0 at 0: an infinite derivative times a masked 0 would be NaN."""
    zero = square == 0  # NaN is not zero, and stays NaN
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


def gated(gate: Array, leaf: Array) -> Array:
    """Returns a gate `[...]` times a leaf that begins with the axes of the gate, in the dtype of the leaf."""
    return jnp.expand_dims(gate, range(gate.ndim, leaf.ndim)).astype(leaf.dtype) * leaf
