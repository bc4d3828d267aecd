"""The step size of a write: the length of the write along its direction.

"paper" and "sum" follow the derivative of a loss; "normalised" solves for the step that meets the target.

"normalised" is exact for one head and for several. To see this, stack the heads of a linear memory: let X `[H, K]` be
its inputs, T `[H, V]` the targets and E = X W - T `[H, V]` the errors. A write W' = W - X^T D changes the errors to

    X W' - T = E - X X^T D,

which is zero for D = G^-1 E with the Gram matrix G = X X^T `[H, H]`. Every head then reads back its own target after
one write, for any overlap of linearly independent keys. Of all such W' this one is nearest to W, since it changes W
only in the span of the keys. For one head, D = E / |x|^2 is the normalised delta rule.

With the inverse lengths s_h = 1 / |x_h|, D = s C^-1 s E, where C = s G s has ones on its diagonal however long the
keys are. Equal keys make C singular. The code therefore adds a small ridge r and replaces C^-1 by

    M (I + 2 N) (I - N),    M = (C + r I)^-1,    N = r M

Along an eigenvector of C with eigenvalue c >> r, the share 3 (r / c)^2 of the error remains: nearly nothing for
linearly independent keys. If heads share one key, c = 0 for the differences of their targets. I - N removes these, so
that the solution stores the mean, and that D is not a difference of large numbers. r balances the share that remains
against rounding errors, which grow with 1 / r.

With more than two heads, the component of the errors that a write of the first head alone removes is subtracted before
the solve, and its delta is added to that of the first head. If the keys are about equal, the right sides of the solve
are then small numbers.

If |x|^2 < epsilon, s is |x|^2 / epsilon^1.5 instead, so that a write fades out as its key approaches zero.

The write rate multiplies D, so that a rate beta in (0, 1) removes that fraction of the error of every head.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

Array = jax.Array

# The delta for an error e: the solution above; 2 e, the derivative of the sum of squares over heads and features;
# 2 e / (H V), the derivative of their mean.
STEP_SIZES = ("normalised", "sum", "paper")
# Matrices of size H x H are cheap, and their rounding errors would be multiplied by 1 / r.
_EXACT = jax.lax.Precision.HIGHEST


def step(step_size: str, error: Array, kernel: Array, epsilon: float) -> Array:
    """Returns the deltas `[B, H, O]` for heads that are written together.

    Args:
      step_size: one of `STEP_SIZES`.
      error: `[B, H, O]`.
      kernel: the effect of the delta of each head on the answer of each other head, `[B, H, H]`: G above.
      epsilon: squared norm of a key below which writes fade out.
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
      epsilon: as in `step`.
    """
    match step_size:
        case "paper":
            return jnp.full_like(kernel, 2 / features)
        case "sum":
            return jnp.full_like(kernel, 2)
    return jnp.square(inverse_norm(kernel, epsilon))


@jax.custom_jvp
def gram(x: Array) -> Array:
    """Returns G = X X^T, `[B, H, I] -> [B, H, H]`, in at least float32."""
    return inner_products(x, x)


def inner_products(x: Array, y: Array) -> Array:
    """Returns X Y^T, `[B, H, I], [B, H, I] -> [B, H, H]`, in at least float32."""
    dtype = np.promote_types(x.dtype, np.float32)
    return jnp.einsum("bhi,bgi->bhg", x, y, precision=_EXACT, preferred_element_type=dtype)


@gram.defjvp
def _gram_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # With one product here, the transposed derivative is also one product: (C + C^T) X.
    half = inner_products(*tangents, *primals)
    return gram(*primals), half + jnp.swapaxes(half, 1, 2)


def inverse_norm(square: Array, epsilon: float) -> Array:
    """Returns 1 / |x| for squares |x|^2, and |x|^2 / epsilon^1.5 below |x|^2 = epsilon, with finite derivatives."""
    large = square > epsilon
    fading = square * epsilon**-1.5 if epsilon > 0 else jnp.zeros_like(square)
    return jnp.where(large, jax.lax.rsqrt(jnp.where(large, square, 1)), fading)


def solve(kernel: Array, error: Array, epsilon: float, ridge: float | None = None) -> Array:
    """Returns the normalised deltas `[B, H, O]`.

    Args:
      kernel: the Gram matrix G, or an approximation of it, `[B, H, H]`.
      error: `[B, H, O]`.
      epsilon: as in `step`.
      ridge: r; None for that of an exact Gram matrix, which depends on the dtype.
    """
    return _apply(_delta_map(kernel, epsilon, error.dtype, ridge), error)


def solve_layers(kernels: Sequence[Array], errors: Sequence[Array], epsilon: float) -> list[Array]:
    """Returns `solve(kernel, error, epsilon)` of every layer; the small matrices of all layers are computed at once."""
    batch = kernels[0].shape[0]
    maps = _delta_map(jnp.concatenate(kernels), epsilon, errors[0].dtype)
    return [_apply(maps[n * batch : (n + 1) * batch], error) for n, error in enumerate(errors)]


def _apply(delta_map: Array, error: Array) -> Array:
    right = error.astype(delta_map.dtype)
    if delta_map.shape[-1] == 1:
        delta = delta_map * right
    elif delta_map.shape[-1] == 2:
        delta = _product(delta_map, right)
    else:
        delta = jnp.einsum("bhg,bgo->bho", delta_map, right, precision=_EXACT)
    return delta.astype(error.dtype)


def _delta_map(kernel: Array, epsilon: float, dtype: DTypeLike, ridge: float | None = None) -> Array:
    """Returns the matrix `[B, H, H]` from the errors, of the given dtype, to the normalised deltas."""
    heads = kernel.shape[-1]
    identity = _identity(kernel)
    scale = inverse_norm(jnp.sum(identity * kernel, -1, keepdims=True), epsilon)
    if heads == 1:
        return jnp.square(scale)
    own = float(jnp.finfo(dtype).eps) ** 0.6 if ridge is None else ridge  # 7e-5 in float32, 0.05 in bfloat16
    scales = scale * jnp.swapaxes(scale, 1, 2)
    system = jnp.where(identity > 0, 1, scales * kernel)
    if heads == 2:
        return scales * _filter_two(own, system)
    if ridge is not None:
        return scales * _filter(ridge, system, jnp.broadcast_to(identity, system.shape))
    column = system[:, :, :1]
    share = jnp.swapaxes(column, 1, 2) / jnp.sum(column * column, 1, keepdims=True)
    return scales * (_filter(own, system, identity - column * share) + identity[:, :, :1] * share)


def _filter_two(ridge: float, system: Array) -> Array:
    """Returns M (I + 2 N) (I - N) for C `[B, 2, 2]`, whose eigenvectors are the sum and the difference of the heads."""
    signs = jnp.asarray([1, -1], system.dtype)[None, :, None]
    values = 1 + signs * system[:, :1, 1:]
    once = 1 / (values + ridge)
    values = once * (1 + 2 * ridge * once) * (values * once) / 2
    total, difference = values[:, :1], values[:, 1:]
    return jnp.where(_identity(system) > 0, total + difference, total - difference)


def _filter(ridge: float, system: Array, right: Array) -> Array:
    """Returns M (I + 2 N) (I - N) F with M = (C + r I)^-1 and N = r M, for matrices C and F `[B, H, H]`.

    The factors are applied from right to left, so that the large M multiplies what I - N has made small.
    """
    system = system + ridge * _identity(system)
    inverse = _inverse(jax.lax.stop_gradient(system))

    def solution(right: Array) -> Array:
        # Derivatives of all orders reuse the inverse (implicit function theorem).
        return jax.lax.custom_linear_solve(
            lambda x: _product(system, x), right, lambda _, b: _product(inverse, b), symmetric=True
        )

    left = right - ridge * solution(right)
    return solution(left + 2 * ridge * solution(left))


def _identity(like: Array) -> Array:
    return jnp.eye(like.shape[-1], dtype=like.dtype)[None]


def _product(a: Array, b: Array) -> Array:
    """Returns A B for A `[B, H, H]`; for few heads as elementwise operations, which the compiler fuses with others."""
    if a.shape[-1] > 8:
        return jnp.einsum("bhg,bgo->bho", a, b, precision=_EXACT)
    return functools.reduce(jnp.add, (a[:, :, g : g + 1] * b[:, g : g + 1] for g in range(a.shape[-1])))


def _inverse(matrix: Array) -> Array:
    """Returns A^-1 for positive definite A `[B, H, H]`.

    This is Gauss-Jordan elimination, which needs no pivoting here, unrolled over the few heads. The compiler fuses it
    into loops of elementwise operations; a batched library call would process the matrices one by one.
    """
    heads = matrix.shape[-1]
    identity = _identity(matrix)
    rows = jnp.concatenate([matrix, jnp.broadcast_to(identity, matrix.shape)], -1)
    for h in range(heads):
        row = rows[:, h : h + 1] / rows[:, h : h + 1, h : h + 1]
        rows = jnp.where(identity[:, :, h : h + 1] > 0, row, rows - rows[:, :, h : h + 1] * row)
    return rows[:, :, heads:]
