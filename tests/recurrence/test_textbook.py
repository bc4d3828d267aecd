"""Tests the textbook form by itself; `test_forms.py` compares it with the other forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import MNMCell, WriteOptions, local_memory
from mnm_jax.recurrence._textbook import unroll_textbook
from mnm_jax.testing._contract import assert_derivatives

T, B, D = 5, 2, 3


def cell(**options):
    memory = local_memory(4, 4, hidden_sizes=(5,), options=WriteOptions(**options), param_dtype=jnp.float64)
    return MNMCell(D, 6, memory, heads=2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))


def test_its_gradient_is_that_of_finite_differences(x64):
    """Differences are along random directions in parameters, first weights and inputs, with several writes per step."""
    model = cell(inner_steps=2)
    carry = model.initialize_carry((B, D))
    x = np.random.default_rng(0).normal(size=(T, B, D))
    mask = np.array([[True, True], [True, False], [True, True], [False, True], [True, True]])

    def loss(arguments):
        model, carry, x = arguments
        last, outputs = unroll_textbook(model, carry, x, mask=mask, fork=~mask[::-1])
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves((last, outputs)))

    assert_derivatives(loss, (model, carry, x), order=1, directions=3)


def test_it_keeps_pairs_and_no_weights(x64):
    """The residuals of a sequence hold the weights of one step, and no array `[T, B, d, d]`."""
    model, x = cell(), jnp.zeros((T, B, D))
    jaxpr = jax.make_jaxpr(lambda model, x: jax.vjp(lambda *args: unroll_textbook(args[0], None, args[1]), model, x)[1])
    shapes = [aval.shape for aval in jaxpr(model, x).out_avals]
    assert (T, B, 2, 4) in shapes and (T, B, 2, 5) in shapes  # the pairs
    assert (B, 4, 5) in shapes  # the last weights
    assert not any(shape[:2] == (T, B) and len(shape) == 4 and shape[2:] in ((4, 5), (5, 4)) for shape in shapes)


def test_shapes_that_do_not_agree_are_named(x64):
    with pytest.raises(ValueError, match=r"fork must have shape \[T, B\] = \[5, 2\], got \(2, 5\)"):
        unroll_textbook(cell(), None, jnp.zeros((T, B, D)), fork=jnp.zeros((B, T), bool))
