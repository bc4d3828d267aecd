"""Tests every cell's first and second derivatives against finite differences, and its execution forms."""

import jax.numpy as jnp

from mnm_jax import testing


def test_derivatives_agree_with_finite_differences(make, x64):
    testing.check_derivatives(make(jnp.float64, hidden=2))


def test_execution_forms_agree_or_are_refused(make, x64):
    testing.check_forms(make(jnp.float64))
