"""How far a write goes. `paper` and `sum` follow a loss; `normalised` solves for the step that meets the target.

Why `normalised` is exact, for one head and for several. Stack the heads: X `[H, K]` the inputs of a linear memory,
E = X W - T `[H, V]` its errors. A write W' = W - X^T D moves the read-outs to

    X W' - T = E - X X^T D,

which is zero for D = G^-1 E with the Gram matrix G = X X^T `[H, H]`: every head reads back its own target in one
shot, however much the keys overlap, and of all such W' this one is nearest to W (it moves in the span of the keys
only). One head gives D = E / |x|^2, the delta rule. We solve (G + epsilon I) D = E: epsilon bounds the step when a key
vanishes, and when two heads share one key it writes the mean of their targets.

The write rate multiplies D, so a rate beta in (0, 1) closes that fraction of the error of every head.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

STEP_SIZES = ("normalised", "sum", "paper")


@jax.custom_jvp
def gram(x: Array) -> Array:
    """G = X X^T: `[B, H, I] -> [B, H, H]`."""
    return jnp.einsum("bhi,bgi->bhg", x, x)


@gram.defjvp
def _gram_jvp(primals, tangents):
    # Written with one product, so that its transpose is one: (C + C^T) X.
    half = jnp.einsum("bhi,bgi->bhg", *tangents, *primals)
    return gram(*primals), half + jnp.swapaxes(half, 1, 2)


def solve(matrix: Array, right: Array, epsilon: float) -> Array:
    """(A + epsilon I)^-1 R for symmetric positive semi-definite A `[B, H, H]` and R `[B, H, O]`.

    By the inverse, which derivatives, of all orders and by the implicit function, need again. Low precision is raised
    to float32 for the solve.
    """
    dtype = right.dtype if jnp.finfo(right.dtype).bits >= 32 else jnp.float32
    regular = matrix.astype(dtype) + epsilon * jnp.eye(matrix.shape[-1], dtype=dtype)[None]
    inverse = _inverse(jax.lax.stop_gradient(regular))
    solution = jax.lax.custom_linear_solve(
        lambda x: jnp.einsum("bhg,bgo->bho", regular, x),
        right.astype(dtype),
        lambda _, b: jnp.einsum("bhg,bgo->bho", inverse, b),
        symmetric=True,
    )
    return solution.astype(right.dtype)


def _inverse(matrix: Array) -> Array:
    """A^-1 of positive definite A `[B, H, H]`.

    Gauss-Jordan elimination, which needs no pivoting here, unrolled over the few heads: it stays inside fused loops of
    elementwise operations, where a batched library call would go through the matrices one by one.
    """
    heads = matrix.shape[-1]
    identity = jnp.eye(heads, dtype=matrix.dtype)[None]
    rows = jnp.concatenate([matrix, jnp.broadcast_to(identity, matrix.shape)], -1)
    for h in range(heads):
        row = rows[:, h : h + 1] / rows[:, h : h + 1, h : h + 1]
        # Subtracting the unit column leaves `row` itself in place h and clears column h everywhere else.
        rows = rows - (rows[:, :, h : h + 1] - identity[:, :, h : h + 1]) * row
    return rows[:, :, heads:]
