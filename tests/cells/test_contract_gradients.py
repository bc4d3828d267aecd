"""Every cell's derivatives of first and second order against finite differences, in double precision."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.test_util import check_grads

from mnm_jax import unroll
from mnm_jax.cells import split_output

T, D = 2, 6


def test_derivatives_agree_with_finite_differences(make, common, x64):
    """Two steps, so that the carry is differentiated through; all that a training objective takes from a cell.

    Second order is the derivative of the gradient, by forward mode: each mode more compiles for ten seconds. The plain
    form is the reference of all others, which have no forward mode of first order (tests/recurrence).
    """
    cell = make(jnp.float64, in_features=D, hidden=2)
    leaves, tree = jax.tree.flatten(cell)

    @jax.jit
    def objective(leaves, x):
        cell = jax.tree.unflatten(tree, leaves)
        _, outputs = unroll(cell, None, x, form="plain")
        features, meta_loss = split_output(outputs)
        value = jnp.sum(jnp.sin(features) * jnp.arange(1.0, 1 + features.shape[-1])[None, None])
        return value if meta_loss is None else value + jnp.sum(meta_loss)

    x = common.inputs(shape=(T, 1, D))
    # A central difference errs by eps^2 times the third derivative (1e5 here): the default eps, 1/2048, is too coarse.
    check = partial(check_grads, args=(leaves, x), order=1, atol=1e-6, rtol=1e-6, eps=1e-6)
    check(objective, modes=("fwd", "rev"))
    check(jax.jit(jax.grad(objective, argnums=(0, 1))), modes=("fwd",))
