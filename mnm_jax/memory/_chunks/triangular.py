"""Solves triangular systems by products of matrices.

The CPU's library solver processes a batch one system at a time, and took most of the time of a chunk.

Shape letters: `B` systems, `C` unknowns, `O` right sides.
"""

import jax
import jax.numpy as jnp

from mnm_jax._vary import vary_alike

Array = jax.Array


def solve_unit_lower(below: Array, right: Array) -> Array:
    """Returns (I + N)^-1 R, where N is the part of `below` under its diagonal.

    It multiplies by the inverse, which derivatives of all orders reuse (implicit function theorem).

    Args:
      below: `[B, C, C]`; elements on or above the diagonal are ignored.
      right: R, `[B, C, O]`.
    """
    below, right = vary_alike((jnp.tril(below, -1), right))
    inverse = _inverse(jax.lax.stop_gradient(below))
    return jax.lax.custom_linear_solve(
        lambda x: x + below @ x,
        right,
        lambda _, b: inverse @ b,
        lambda _, b: jnp.swapaxes(inverse, 1, 2) @ b,
    )


def _inverse(below: Array) -> Array:
    """Returns (I + N)^-1 for strictly lower N `[B, C, C]`.

    It inverts diagonal blocks whose size doubles in every pass:

        [ P  0 ]^-1     [     P^-1         0   ]
        [ Q  S ]     =  [ -S^-1 Q P^-1    S^-1 ]

    This is forward substitution in another order, and equally accurate.
    """
    batch, size = below.shape[0], below.shape[1]
    whole = 1 << (size - 1).bit_length()
    padded = jnp.pad(below, ((0, 0), (0, whole - size), (0, whole - size)))
    inverses, padded = vary_alike((jnp.ones((batch, whole, 1, 1), below.dtype), padded))
    half = 1
    while half < whole:
        count = whole // (2 * half)
        # The blocks Q along the diagonal: rows of the second half, columns of the first half.
        tiles = padded.reshape(batch, count, 2, half, count, 2, half)[:, :, 1, :, :, 0]
        corner = jnp.moveaxis(jnp.diagonal(tiles, axis1=1, axis2=3), -1, 1)
        upper, lower = inverses[:, 0::2], inverses[:, 1::2]
        corner = -lower @ (corner @ upper)
        top = jnp.concatenate([upper, jnp.zeros_like(upper)], -1)
        inverses = jnp.concatenate([top, jnp.concatenate([corner, lower], -1)], -2)
        half *= 2
    return inverses[:, 0, :size, :size]
