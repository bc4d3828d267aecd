"""The step size of a write: the length of the write along its direction.

"paper" and "sum" follow the derivative of a loss; "normalised" solves for the step that meets the target.

"normalised" is exact for one head and for several. To see this, stack the heads of a linear memory: let X `[H, K]` be
its inputs, T `[H, V]` the targets and E = X W - T `[H, V]` the errors. A write W' = W - X^T D changes the errors to

    X W' - T = E - X X^T D,

which is zero for D = (X X^T)^-1 E. Every head then reads back its own target after one write, for any overlap of
linearly independent keys. Of all such W' this one is nearest to W, since it changes W only in the span of the keys.
For one head, D = E / |x|^2 is the normalised delta rule.

Several heads. With the inverse lengths s_h = 1 / |x_h|, the unit keys U = s X and their correlations C = U U^T, the
write is U^T C^-1 s E. Equal keys make C singular, so that C^-1 is replaced by

    M (I + 2 N) (I - N),    M = (C + r I)^-1,    N = r M,    r = eps^0.95

with the machine epsilon of the errors' dtype. Along an eigenvector of C with eigenvalue c, the share n^2 (3 - 2 n) of
the error remains, with n = r / (c + r): nearly nothing for c >> r, and everything for c = 0. If heads share one key,
c = 0 for the differences of their targets, so that the solution stores the mean. In between, the share and its
derivatives are smooth. Two unit keys at a distance d, up to their signs, have c = d^2 / 2. The distances at which one
half and 99.9% of the difference of their targets are stored are

    dtype      r        one half   99.9%
    float32    2.7e-7   0.0007     0.005
    bfloat16   0.010    0.14       1.0
    float64    1.4e-15  5e-8       4e-7

If heads share one direction with different lengths, the mean is that of the targets per unit of length.

Rounding. C itself and the deltas of close keys, of size 1 / d^2, would be rounded to errors of size eps / d^2 in the
answers. The pairs of a write are therefore not the keys and their deltas, but mixed rows Y = A U and their deltas,
such that close keys give a short row, formed by subtraction before any product. In these rows

    U^T M (I + 2 N) (I - N) s E = Y^T M' (I + 2 N') (I - N') A s E,
    M' = (Y Y^T + r A A^T)^-1,    N' = r A A^T M',

for every invertible A. A therefore needs no derivative and no accuracy; only its elements must not be large. For two
heads A is the sum and the difference. For more heads it is the elimination of C + I / 1000, which subtracts from every
key its regression on the keys before it. Errors are then of size eps / d.

If |x|^2 < epsilon, s is |x|^2 / epsilon^1.5 instead, and C keeps ones on its diagonal, so that a write fades out as its
key approaches zero.

The write rate multiplies D, so that a rate beta in (0, 1) removes that fraction of the error of every head.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from mnm_jax._precision import wide, wide_dtype
from mnm_jax.memory._options import SMALLEST
from mnm_jax.memory._types import Pair

Array = jax.Array

# The delta for an error e: the solution above; 2 e, the derivative of the sum of squares over heads and features;
# 2 e / (H V), the derivative of their mean.
STEP_SIZES = ("normalised", "sum", "paper")
# Matrices of size H x H are cheap, and their rounding errors would be multiplied by 1 / r.
_EXACT = jax.lax.Precision.HIGHEST
_FEW = 4  # products with matrices of up to so many heads are sums
REGRESSION = 1e-3  # the ridge of A; elements of A are at most 1 / (2 sqrt(1e-3)) = 16


def normalised_pairs(inputs: Sequence[Array], errors: Sequence[Array], epsilon: float) -> tuple[Pair, ...]:
    """Returns the pairs of "normalised", one per layer, for heads that are written together.

    The small matrices of all layers are computed at once, as `[H, H, N]` with N = L B.

    Args:
      inputs: `[B, H, I]` per layer.
      errors: `[B, H, O]` per layer.
      epsilon: squared norm of a key below which writes fade out.
    """
    layers, heads = len(inputs), inputs[0].shape[1]
    if heads == 1:
        scale = inverse_norm(_stack([gram(x) for x in inputs]), epsilon)
        if inputs[0].dtype == jnp.float16:  # 1 / |x|^2 of a short key would exceed its numbers
            scales = _divide(scale, layers)
            return tuple(Pair(_apply(s, x), _apply(s, e)) for s, x, e in zip(scales, inputs, errors, strict=True))
        return tuple(map(Pair, inputs, map(_apply, _divide(jnp.square(scale), layers), errors)))
    keys = [wide(x) for x in inputs]
    squares = _stack([jnp.sum(x * x, -1, keepdims=True) for x in keys])
    scale = inverse_norm(squares, epsilon)
    mix = _mix(inputs, jax.lax.stop_gradient(scale))
    divided = zip(_divide(mix, layers), _divide(scale, layers), keys, strict=True)
    rows = [_mixed(a, s * x).astype(inputs[0].dtype) for a, s, x in divided]
    missing = jnp.where(is_long(squares, epsilon), 0, 1 - squares * jnp.square(scale))  # on the diagonal of C
    both = _product(mix, jnp.concatenate([_transpose(mix), missing * _transpose(mix)], 1))
    metric, mixed_missing = both[:, :heads], both[:, heads:]  # A A^T, and the same with `missing` between
    system = _stack([gram(x) for x in rows]) + mixed_missing
    ridge = ridge_of(errors[0].dtype)
    maps = _filter(system, ridge, mix * _transpose(scale), None if heads == 2 else metric)
    return tuple(map(Pair, rows, map(_apply, _divide(maps, layers), errors)))


def ridge_of(dtype: DTypeLike) -> float:
    """Returns r for errors of a dtype."""
    return float(jnp.finfo(dtype).eps) ** 0.95


def factor(step_size: str | None, heads: int, features: int) -> float:
    """Returns the factor of an error in its delta: of "sum", "paper", or 1 for None."""
    return {None: 1.0, "sum": 2.0, "paper": 2 / (heads * features)}[step_size]


def solve(kernel: Array, error: Array, epsilon: float, ridge: float) -> Array:
    """Returns M (I + 2 N) (I - N) E, `[B, H, O]`, for an approximate Gram matrix `[B, H, H]` in place of X X^T."""
    kernel = _stack([kernel])
    identity = _identity(kernel)
    scale = inverse_norm(jnp.sum(identity * kernel, 1, keepdims=True), epsilon)
    system = jnp.where(identity > 0, 1, scale * _transpose(scale) * kernel)
    (delta_map,) = _divide(scale * _filter(system, ridge, identity * _transpose(scale)), 1)
    return _apply(delta_map, error)


@jax.custom_jvp
def gram(x: Array) -> Array:
    """Returns G = X X^T, `[B, H, I] -> [B, H, H]`, in at least float32."""
    return inner_products(x, x)


def inner_products(x: Array, y: Array) -> Array:
    """Returns X Y^T, `[B, H, I], [B, H, I] -> [B, H, H]`, in at least float32."""
    return jnp.einsum("bhi,bgi->bhg", x, y, precision=_EXACT, preferred_element_type=wide_dtype(x.dtype))


@gram.defjvp
def _gram_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # With one product here, the transposed derivative is also one product: (C + C^T) X.
    half = inner_products(*tangents, *primals)
    return gram(*primals), half + jnp.swapaxes(half, 1, 2)


def inverse_norm(square: Array, epsilon: float) -> Array:
    """Returns 1 / |x| for squares |x|^2, and |x|^2 / epsilon^1.5 below |x|^2 = epsilon, with finite derivatives.

    An epsilon below `SMALLEST` counts as 0, for which nothing is written below |x|^2 = `SMALLEST`.
    """
    large = is_long(square, epsilon)
    fading = square * epsilon**-1.5 if epsilon > SMALLEST else jnp.zeros_like(square)
    return jnp.where(large, jax.lax.rsqrt(jnp.where(large, square, 1)), fading)


def is_long(square: Array, epsilon: float) -> Array:
    """Returns whether a write with inputs of this |x|^2 is complete, instead of fading out."""
    return square > max(epsilon, SMALLEST)


def _stack(parts: Sequence[Array]) -> Array:
    """Returns the layers' `[B, H, G]` as one `[H, G, L * B]`, an order in which a CPU computes many at once."""
    return jnp.concatenate([jnp.moveaxis(part, 0, 2) for part in parts], 2)


def _divide(stacked: Array, layers: int) -> list[Array]:
    """Returns the part of every layer, `[B, H, G]`. The batch size may be symbolic."""
    batch = stacked.shape[2] // layers
    parts = (jax.lax.slice_in_dim(stacked, n * batch, (n + 1) * batch, axis=2) for n in range(layers))
    return [jnp.moveaxis(part, 2, 0) for part in parts]


def _apply(delta_map: Array, error: Array) -> Array:
    """Returns the deltas `[B, H, O]` in the dtype of the errors."""
    return _mixed(delta_map, error.astype(delta_map.dtype)).astype(error.dtype)


@jax.custom_jvp
def _mixed(matrix: Array, rows: Array) -> Array:
    """Returns A X, `[B, H, H], [B, H, O] -> [B, H, O]`; for few heads as sums, as in `_product`."""
    heads = matrix.shape[-1]
    if heads > _FEW:
        return jnp.einsum("bhg,bgo->bho", matrix, rows, precision=_EXACT)
    return reduce(jnp.add, (matrix[:, :, g : g + 1] * rows[:, g : g + 1] for g in range(heads)))


@_mixed.defjvp
def _mixed_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # Written for their transposes: a product of a cotangent with X^T, and sums of a cotangent's rows times A^T.
    (matrix, rows), (dmatrix, drows) = primals, tangents
    change = jnp.einsum("bhg,bgo->bho", dmatrix, rows, precision=_EXACT)
    if matrix.shape[-1] > _FEW:
        return _mixed(matrix, rows), change + _mixed(matrix, drows)
    by_row = [jnp.sum(matrix[:, h, :, None] * drows, 1) for h in range(matrix.shape[1])]
    return _mixed(matrix, rows), change + jnp.stack(by_row, 1)


def _mix(inputs: Sequence[Array], scale: Array) -> Array:
    """Returns A `[H, H, L * B]` for inputs `[B, H, I]` and their inverse lengths, a constant of every derivative."""
    heads = scale.shape[0]
    if heads == 2:
        signs = jnp.asarray([[[1], [1]], [[1], [-1]]], scale.dtype) * 0.5**0.5
        return jnp.broadcast_to(signs, (2, 2, scale.shape[2]))
    correlations = scale * jax.lax.stop_gradient(_stack([gram(x) for x in inputs])) * _transpose(scale)
    return _eliminate(jnp.where(_identity(correlations) > 0, 1 + REGRESSION, correlations), divide=False)


def _filter(system: Array, ridge: float, right: Array, metric: Array | None = None) -> Array:
    """Returns M (I + 2 N) (I - N) F with M = (S + r P)^-1 and N = r P M, for S, F and a constant P `[H, H, N]`.

    The factors are applied from right to left, so that the large M multiplies what I - N has made small. S is
    `system`, F is `right`, and P is `metric`, or the identity if `metric` is None.
    """

    def times_ridge(x: Array) -> Array:
        return ridge * (x if metric is None else _product(metric, x))

    solution = _solver(system + times_ridge(_identity(system)))
    left = right - times_ridge(solution(right))
    return solution(left + 2 * times_ridge(solution(left)))


def _solver(system: Array) -> Callable[[Array], Array]:
    """Returns the function F -> S^-1 F for positive definite S and any F `[H, H, N]`."""
    if system.shape[0] == 2:
        return partial(_product, _inverse_two(system))
    inverse = _eliminate(jax.lax.stop_gradient(system), divide=True)
    # Derivatives of all orders reuse the inverse (implicit function theorem).
    return lambda right: jax.lax.custom_linear_solve(
        lambda x: _product(system, x), right, lambda _, b: _product(inverse, b), symmetric=True
    )


def _identity(like: Array) -> Array:
    return jnp.eye(like.shape[0], dtype=like.dtype)[:, :, None]


def _transpose(matrix: Array) -> Array:
    return jnp.swapaxes(matrix, 0, 1)


def _product(a: Array, b: Array) -> Array:
    """Returns A B for A `[H, H, N]`; for few heads as sums, which the compiler fuses with other operations."""
    if a.shape[0] > _FEW:
        return jnp.einsum("hgn,gon->hon", a, b, precision=_EXACT)
    return jnp.sum(a[:, :, None] * b[None], 1)


def _inverse_two(matrix: Array) -> Array:
    """Returns A^-1 for symmetric A `[2, 2, N]`."""
    first, other, last = matrix[:1, :1], matrix[:1, 1:], matrix[1:, 1:]
    adjugate = jnp.where(_identity(matrix) > 0, matrix[::-1, ::-1], -matrix)
    return adjugate / (first * last - other * other)


def _eliminate(matrix: Array, *, divide: bool) -> Array:
    """Returns the matrix E `[H, H, N]` by which elimination multiplies a positive definite A.

    E A is the identity if `divide` (Gauss-Jordan). Otherwise it is upper triangular, and E has ones on its diagonal. No
    pivoting is needed. The columns of E take the places of the columns of A that are eliminated. For few heads the
    elimination is unrolled, and the compiler fuses it into loops of elementwise operations; for many it would compute
    earlier steps again and again. A batched library call would process the matrices one by one.
    """
    heads = matrix.shape[0]
    identity = _identity(matrix)
    row, column = np.arange(heads)[:, None, None], np.arange(heads)[None, :, None]

    def step(h: Any, matrix: Array) -> Array:
        eliminated = jax.lax.dynamic_slice_in_dim(matrix, h, 1, 1)
        pivot = jax.lax.dynamic_slice_in_dim(eliminated, h, 1, 0)
        matrix = jnp.where(column == h, identity, matrix)
        pivot_row = jax.lax.dynamic_slice_in_dim(matrix, h, 1, 0)
        others = matrix - eliminated / pivot * pivot_row
        return jnp.where(row == h, pivot_row / pivot, others) if divide else jnp.where(row > h, others, matrix)

    steps = heads if divide else heads - 1
    if heads <= _FEW:
        matrix = reduce(lambda matrix, h: step(h, matrix), range(steps), matrix)
    else:
        matrix = jax.lax.fori_loop(0, steps, step, matrix)
    return matrix if divide else jnp.where(row > column, matrix, identity)
