"""Computes the pairs of a write of one example, whose heads are written together, in operations that Pallas supports.

Shape letters: `H` heads, `F` features, `V` value features.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mnm_jax.memory._kernels.dots import Dots, column, row
from mnm_jax.memory._rules import RIDGE, GradientRule, SizedRule
from mnm_jax.memory._step_size import REGRESSION, factor, inverse_norm, is_long, ridge_of

Array = jax.Array


def steps(dots: Dots, rule: SizedRule, x: Array, errors: Array) -> tuple[Array, Array]:
    """Returns the pair of one layer at rate one, as `SizedRule.steps` does, for inputs and errors `[H, F]`.

    It has derivatives of first order.
    """
    heads = len(x)
    if rule.step_size != "normalised":
        return x, factor(rule.step_size, heads, errors.shape[1]) * errors
    squares = jnp.sum(x * x, 1, keepdims=True)
    scale = inverse_norm(squares, rule.epsilon)
    if heads == 1:
        return x, scale * scale * errors
    mix = _mix(dots, jax.lax.stop_gradient(scale * x))
    missing = jnp.where(is_long(squares, rule.epsilon), 0, 1 - squares * scale * scale)
    rows = dots.times(mix, scale * x)
    system = dots.times_transposed(rows, rows) + dots.times_transposed(mix * missing.T, mix)
    ridge = ridge_of(errors.dtype) * dots.times_transposed(mix, mix)
    return rows, _filter(dots, system, ridge, dots.times(mix, scale * errors))


def gradient_deltas(
    dots: Dots, rule: GradientRule, inputs: list[Array], error: Array, backward: Callable[[Array], list[Array]]
) -> list[Array]:
    """Returns the deltas of all layers at rate one, as `GradientRule.pairs` does; derivatives of first order.

    Args:
      dots: the products.
      rule: the rule.
      inputs: x_l, `[H, F]`.
      error: `[H, V]`.
      backward: the vjp of the network, from the cotangent of its answers to the cotangents of x_l W_l.
    """
    if rule.step_size != "normalised":
        return backward(factor(rule.step_size, *error.shape) * error)
    of_error = backward(error)
    *squares, last = [jnp.sum(jnp.sum(d * d, 1, keepdims=True), 0, keepdims=True) for d in of_error]
    size = last + float(jnp.finfo(last.dtype).tiny) ** 0.25
    grams = [dots.times_transposed(x, x) for x in inputs]
    kernel = sum((square / size * gram for square, gram in zip(squares, grams[:-1], strict=True)), grams[-1])
    if len(error) == 1:
        scale = inverse_norm(kernel, rule.epsilon)
        return [scale * scale * delta for delta in of_error]
    rows, columns = _indices(kernel)
    identity = jnp.where(rows == columns, jnp.ones_like(kernel), 0)
    scale = inverse_norm(jnp.sum(identity * kernel, 1, keepdims=True), rule.epsilon)
    system = jnp.where(rows == columns, 1, scale * scale.T * kernel)
    return backward(scale * _filter(dots, system, RIDGE * identity, scale * error))


def _mix(dots: Dots, unit: Array) -> Array:
    """Returns A of `_step_size` for unit keys, without a derivative."""
    correlations = dots.times_transposed(unit, unit)
    rows, columns = _indices(correlations)
    if len(unit) == 2:
        return jnp.where(rows + columns == 2, -1, jnp.ones_like(correlations)) * 0.5**0.5
    return _eliminate(jnp.where(rows == columns, 1 + REGRESSION, correlations), divide=False)


def _filter(dots: Dots, system: Array, ridge: Array, right: Array) -> Array:
    """Returns M (I + 2 N) (I - N) F with M = (S + R)^-1, N = R M; S is `system`, R is `ridge`, F is `right`."""
    whole = system + ridge
    inverse = _eliminate(jax.lax.stop_gradient(whole), divide=True)

    def solution(right: Array) -> Array:
        # One step of refinement, whose derivative is that of the solution.
        first = jax.lax.stop_gradient(dots.times(inverse, right))
        return first + dots.times(inverse, right - dots.times(whole, first))

    left = right - dots.times(ridge, solution(right))
    return solution(left + 2 * dots.times(ridge, solution(left)))


def _eliminate(matrix: Array, *, divide: bool) -> Array:
    """Returns the result of `_step_size._eliminate`, for one matrix `[H, H]`."""
    heads = len(matrix)
    rows, columns = _indices(matrix)
    identity = jnp.where(rows == columns, jnp.ones_like(matrix), 0)
    for h in range(heads if divide else heads - 1):
        eliminated = column(matrix, h)
        pivot = row(eliminated, h)
        matrix = jnp.where(columns == h, identity, matrix)
        pivot_row = row(matrix, h)
        others = matrix - eliminated / pivot * pivot_row
        matrix = jnp.where(rows == h, pivot_row / pivot, others) if divide else jnp.where(rows > h, others, matrix)
    return matrix if divide else jnp.where(rows > columns, matrix, identity)


def _indices(matrix: Array) -> tuple[Array, Array]:
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, matrix.shape, axis) for axis in (0, 1))
    return rows, columns
