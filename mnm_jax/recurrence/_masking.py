"""A choice for every example, in all leaves of a pytree."""

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def select(condition: Array, on_true: Any, on_false: Any) -> Any:
    """Leaf by leaf `where`, with a condition `[B]` for leaves `[B, ...]`."""

    def pick(a, b):
        return jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, on_true, on_false)


def who_stays(keep: Array | None, fork: Array | None) -> Array | None:
    """`[B]`: whose new carry goes on to the next step; None: everybody's."""
    if fork is None:
        return keep
    return ~fork if keep is None else keep & ~fork
