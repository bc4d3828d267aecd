"""The step size of a write: the length of the write along its direction.

"paper" and "sum" follow the derivative of a loss; "normalised" solves for the step that meets the target.

"normalised" is exact for one head and for several. To see this, stack the heads of a linear memory: let X `[H, K]` be
its inputs, T `[H, V]` the targets and E = X W - T `[H, V]` the errors. A write W' = W - X^T D changes the errors to

    X W' - T = E - X X^T D,

which is zero for D = G^-1 E with the Gram matrix G = X X^T `[H, H]`. Every head then reads back its own target after
one write, for any overlap of linearly independent keys. Of all such W' this one is nearest to W, since it changes W
only in the span of the keys. For one head, D = E / |x|^2 is the normalised delta rule. The code solves
(G + epsilon I) D = E: epsilon bounds the step for a key near zero, and if two heads share one key the solution stores
the mean of their targets.

The write rate multiplies D, so that a rate beta in (0, 1) removes that fraction of the error of every head.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

# The delta for an error e: the solution above; 2 e, the derivative of the sum of squares over heads and features;
# 2 e / (H V), the derivative of their mean.
STEP_SIZES = ("normalised", "sum", "paper")


def step(step_size: str, error: Array, kernel: Array, epsilon: float) -> Array:
    """Returns the deltas `[B, H, O]` for heads that are written together.

    Args:
      step_size: one of `STEP_SIZES`.
      error: `[B, H, O]`.
      kernel: the effect of the delta of each head on the answer of each other head, `[B, H, H]`: G above.
      epsilon: added to the kernel's diagonal.
    """
    match step_size:
        case "paper":
            return error * (2 / (error.shape[-2] * error.shape[-1]))
        case "sum":
            return 2 * error
    return solve(kernel, error, epsilon)


def step_scale(step_size: str, kernel: Array, features: int, epsilon: float) -> Array:
    """Returns the factor by which `step` multiplies an error if every row is a separate write with one head.

    Args:
      step_size: one of `STEP_SIZES`.
      kernel: `[B, C, 1]`, the only element of each row's kernel.
      features: the size of the error, `O`.
      epsilon: added to the kernel.
    """
    match step_size:
        case "paper":
            return jnp.full_like(kernel, 2 / features)
        case "sum":
            return jnp.full_like(kernel, 2)
    return 1 / (kernel + epsilon)


@jax.custom_jvp
def gram(x: Array) -> Array:
    """Returns G = X X^T: `[B, H, I] -> [B, H, H]`."""
    return jnp.einsum("bhi,bgi->bhg", x, x)


@gram.defjvp
def _gram_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # With one product here, the transposed derivative is also one product: (C + C^T) X.
    half = jnp.einsum("bhi,bgi->bhg", *tangents, *primals)
    return gram(*primals), half + jnp.swapaxes(half, 1, 2)


def solve(matrix: Array, right: Array, epsilon: float) -> Array:
    """Returns (A + epsilon I)^-1 R for symmetric positive semi-definite A `[B, H, H]` and R `[B, H, O]`.

    It multiplies by the inverse, which derivatives of all orders reuse (implicit function theorem). Dtypes with less
    precision than float32 are cast to float32 for the solve.
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
    """Returns A^-1 for positive definite A `[B, H, H]`.

    This is Gauss-Jordan elimination, which needs no pivoting here, unrolled over the few heads. The compiler fuses it
    into loops of elementwise operations; a batched library call would process the matrices one by one.
    """
    heads = matrix.shape[-1]
    identity = jnp.eye(heads, dtype=matrix.dtype)[None]
    rows = jnp.concatenate([matrix, jnp.broadcast_to(identity, matrix.shape)], -1)
    for h in range(heads):
        row = rows[:, h : h + 1] / rows[:, h : h + 1, h : h + 1]
        # Subtracting the unit column leaves `row` itself in place h and clears column h everywhere else.
        rows = rows - (rows[:, :, h : h + 1] - identity[:, :, h : h + 1]) * row
    return rows[:, :, heads:]
