"""The products of a dense memory, in fast memory layouts.

A product is computed in the dtype of the rows, which may have less precision than that of the weights; the weights keep
their dtype.

Shape letters: `B` examples, `H` rows, `I`/`O` a layer's inputs and outputs.
"""

import functools

import jax
import jax.numpy as jnp

from mnm_jax._precision import common_dtype

Array = jax.Array


def times(x: Array, w: Array) -> Array:
    """Returns x W: `[B, H, I], [B, I, O] -> [B, H, O]`."""
    return jnp.einsum("bhi,bio->bho", x, w.astype(x.dtype))


def times_transposed(c: Array, w: Array) -> Array:
    """Returns c W^T: `[B, H, O], [B, I, O] -> [B, H, I]`. On a CPU it takes twice the time of `times`."""
    return jnp.einsum("bho,bio->bhi", c, w.astype(c.dtype))


def shared_times(x: Array, kernel: Array) -> Array:
    """Returns x M, with one M for all examples: `[B, H, I], [I, O] -> [B, H, O]`."""
    return jnp.einsum("bhi,io->bho", x, kernel.astype(x.dtype))


def mix_rows(scores: Array, rows: Array) -> Array:
    """Returns S^T X: `[B, Q, H], [B, Q, I] -> [B, H, I]`, for few rows."""
    return jax.lax.platform_dependent(scores, rows, cpu=_mix_few, default=_mix_by_product)


def _mix_by_product(scores: Array, rows: Array) -> Array:
    return jnp.einsum("bqh,bqi->bhi", scores, rows)


def _mix_few(scores: Array, rows: Array) -> Array:
    # XLA's CPU product is slow in this layout; a sum of few terms becomes one fused loop.
    if rows.shape[1] > 16:
        return _mix_by_product(scores, rows)
    return functools.reduce(jnp.add, (scores[:, q, :, None] * rows[:, q, None, :] for q in range(rows.shape[1])))


def minus_outer(w: Array, x: Array, delta: Array) -> Array:
    """Returns W - sum_h x_h (x) delta_h: `[B, I, O], [B, H, I], [B, H, O] -> [B, I, O]`, in the dtype of W."""
    dtype = common_dtype(w.dtype, delta.dtype)  # rounding delta to fewer digits could make a write useless
    return _minus_outer(w.astype(dtype), x.astype(dtype), delta.astype(dtype)).astype(w.dtype)


@jax.custom_jvp
def _minus_outer(w: Array, x: Array, delta: Array) -> Array:
    # On a CPU the product would first be stored as a separate matrix. Instead a loop updates W in place, with a few
    # rows of x and delta at a time. Without the loop, the compiler would recompute the rows for every element of W.
    return jax.lax.platform_dependent(w, x, delta, cpu=_in_place, default=_by_product)


def _by_product(w: Array, x: Array, delta: Array) -> Array:
    return w - jnp.einsum("bhi,bho->bio", x, delta)


def _in_place(w: Array, x: Array, delta: Array) -> Array:
    rows = x.shape[1]
    if rows == 1 or rows > 32:
        return _by_product(w, x, delta)
    group = next(size for size in (4, 3, 2, 1) if rows % size == 0 and rows > size)

    def split(rows: Array) -> list[Array]:
        return [jnp.swapaxes(rows[:, k::group], 0, 1) for k in range(group)]

    def step(w: Array, some: tuple[list[Array], list[Array]]) -> tuple[Array, None]:
        for a, b in zip(*some, strict=True):
            w = w - a[:, :, None] * b[:, None, :]
        return w, None

    return jax.lax.scan(step, w, (split(x), split(delta)))[0]


@_minus_outer.defjvp
def _minus_outer_jvp(primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    # Written as products, not as sums, because the transpose of a product is a product again.
    (w, x, delta), (dw, dx, ddelta) = primals, tangents
    change = jnp.einsum("bhi,bho->bio", dx, delta) + jnp.einsum("bhi,bho->bio", x, ddelta)
    return _minus_outer(w, x, delta), dw - change
