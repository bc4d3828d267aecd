"""Errors, comparisons and random numbers that the contracts share."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

Array = jax.Array
P = ParamSpec("P")

# Relative and absolute tolerance of numbers that two correct programs may round differently.
_TOLERANCES = {"float64": (1e-9, 1e-11), "float32": (1e-4, 1e-5)}
_COARSE = (5e-2, 5e-2)


def contract(check: Callable[P, None]) -> Callable[P, None]:
    """Returns the check with every exception converted to an AssertionError that names the contract."""
    sentence = (check.__doc__ or "").partition("\n")[0]

    @functools.wraps(check)
    def named(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            check(*args, **kwargs)
        except Exception as error:
            raise AssertionError(f"{check.__name__} failed. {sentence} {error}") from error

    return named


def require(condition: Any, message: str) -> None:
    """Raises AssertionError with a message unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def assert_equal(found: Any, expected: Any) -> None:
    """Raises AssertionError unless two pytrees have the same structure and bit-equal leaves."""
    chex.assert_trees_all_equal_structs(found, expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_close(found: Any, expected: Any, scale: float = 0.0) -> None:
    """Raises AssertionError unless two pytrees agree up to rounding in the dtype of their first floating-point leaf.

    Args:
      found: pytree of arrays.
      expected: pytree of the same structure.
      scale: the largest magnitude in the trees; rounding errors relative to it are accepted, too.
    """
    chex.assert_trees_all_equal_structs(found, expected)
    relative, absolute = _TOLERANCES.get(str(first_dtype(expected)), _COARSE)
    leaves = jax.device_get((jax.tree.leaves(found), jax.tree.leaves(expected)))
    chex.assert_trees_all_close(*leaves, rtol=relative, atol=max(absolute, relative * scale))


def assert_derivatives(value: Callable[[Any], Array], at: Any, *, order: int = 2, directions: int = 1) -> None:
    """Raises AssertionError unless derivatives agree with central differences along random directions, in float64.

    The first order is checked in reverse mode; order 2 also checks it in forward mode, and the second order as the
    forward-mode derivative of the gradient.

    Args:
      value: function of a pytree that returns a scalar. It is compiled.
      at: pytree of floating-point arrays.
      order: 1 or 2.
      directions: number of directions.
    """
    gradient_of = jax.value_and_grad(value)
    differentiate = jax.jit(
        lambda at, along: (gradient_of(at), None) if order == 1 else jax.jvp(gradient_of, (at,), (along,))
    )
    rng, eps = np.random.default_rng(0), 3e-7  # the error is eps^2 times the third derivative, up to 1e10
    for _ in range(directions):
        along = jax.tree.map(lambda leaf: rng.normal(size=np.shape(leaf)), at)
        ends = [jax.tree.map(lambda x, d: np.asarray(x) + step * d, at, along) for step in (eps, -eps)]  # noqa: B023
        results = jax.device_get([differentiate(place, along) for place in (at, *ends)])
        ((_, gradient), tangents), ((high, upper), _), ((low, lower), _) = results
        slope = sum(map(np.vdot, *map(jax.tree.leaves, (gradient, along))))
        quotient = (high - low) / (2 * eps)
        require(np.isclose(quotient, slope, rtol=1e-6, atol=1e-6), f"Difference: {quotient}, derivative: {slope}.")
        if order == 1:
            continue
        forward, curvature = tangents
        require(np.isclose(forward, slope, rtol=1e-9, atol=1e-9), f"Reverse: {slope}, forward: {forward}.")
        quotients = (_flat(upper) - _flat(lower)) / (2 * eps)
        scale = max(1.0, np.abs(quotients).max())
        np.testing.assert_allclose(_flat(curvature), quotients, rtol=1e-6, atol=1e-6 * scale)


def _flat(tree: Any) -> np.ndarray:
    """Returns all numbers of a pytree `[N]`."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def assert_finite(tree: Any) -> None:
    """Raises AssertionError unless all numbers of a pytree are finite."""
    for leaf in jax.tree.leaves(tree):
        require(np.all(np.isfinite(leaf)), f"Not all numbers are finite: {leaf}.")


def first_dtype(tree: Any) -> DTypeLike:
    """Returns the dtype of the first floating-point leaf of a pytree."""
    return next(leaf.dtype for leaf in jax.tree.leaves(tree) if is_float(leaf))


def is_float(leaf: Any) -> bool:
    """Returns whether a leaf is an array of floating-point numbers."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def kinds(tree: Any) -> Any:
    """Returns a pytree's shapes and dtypes."""
    return jax.tree.map(lambda leaf: (leaf.shape, jnp.dtype(leaf.dtype)), tree)


def normal(shape: tuple[int, ...], dtype: DTypeLike, seed: int = 0) -> Array:
    """Returns standard normal numbers, drawn by NumPy, which compiles nothing."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def sum_of_sines(tree: Any) -> Array:
    """Returns a scalar that depends on every floating-point number of a pytree, differently for each leaf."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]
    return sum((jnp.sum(jnp.sin((place + 1) * leaf)) for place, leaf in enumerate(leaves)), start=jnp.zeros(()))
