"""Tests the solver of triangular systems against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnm_jax.memory._chunks.triangular import solve_unit_lower
from mnm_jax.testing._contract import assert_derivatives


@pytest.mark.parametrize("size", [1, 2, 3, 8, 13, 64])
def test_solves_what_numpy_solves_whatever_stands_above_the_diagonal(size, x64):
    rng = np.random.default_rng(size)
    below, right = rng.normal(size=(3, size, size)) / size**0.5, rng.normal(size=(3, size, 2))
    expected = np.linalg.solve(np.eye(size) + np.tril(below, -1), right)
    np.testing.assert_allclose(jax.jit(solve_unit_lower)(below, right), expected, rtol=1e-8, atol=1e-8)


def test_derivatives_of_both_kinds_and_orders(x64):
    rng = np.random.default_rng(0)
    given = rng.normal(size=(2, 5, 5)), rng.normal(size=(2, 5, 3))
    assert_derivatives(lambda given: jnp.sum(jnp.sin(solve_unit_lower(*given))), given)


def test_single_precision_is_as_exact_as_substitution():
    """The couplings are as large as for one key that is written repeatedly; their powers would overflow."""
    below = np.full((1, 64, 64), 0.9, np.float32)
    right = np.random.default_rng(0).normal(size=(1, 64, 4)).astype(np.float32)
    expected = np.linalg.solve(np.eye(64) + np.tril(below.astype(np.float64), -1), right.astype(np.float64))
    np.testing.assert_allclose(jax.jit(solve_unit_lower)(below, right), expected, rtol=1e-4, atol=1e-4)
