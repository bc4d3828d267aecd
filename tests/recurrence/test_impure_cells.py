"""Tests cells that keep state outside their carry or use values outside their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import LSTMCell, MNMCell, WriteOptions, local_memory, matrix_memory, rule_memory, unroll, unroll_memory
from mnm_jax.memory import Pair

T, B, F = 4, 2, 3


class WithDropout(MNMCell):
    """Draws a mask in every step."""

    def __init__(self, *args, rngs, **options):
        super().__init__(*args, rngs=rngs, **options)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, carry, inputs):
        return super().__call__(carry, self.dropout(inputs))


class CountingLSTM(LSTMCell):
    """Counts its steps in a variable."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.steps = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, carry, inputs):
        self.steps[...] = self.steps[...] + 1
        return super().__call__(carry, inputs)


@pytest.mark.parametrize("form", ["auto", "plain", "reversible", "factored"])
def test_a_step_that_changes_the_random_state_of_dropout_is_refused(form):
    cell = WithDropout(F, 4, matrix_memory(2, 2), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="WithDropout may change .* changes 'dropout.rngs.count', .* dropout on"):
        unroll(cell, None, jnp.ones((T, B, F)), form=form)
    cell.eval()  # without dropout it is an ordinary cell
    same = MNMCell(F, 4, matrix_memory(2, 2), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (T, B, F))
    np.testing.assert_allclose(
        unroll(cell, None, x, form=form)[1].features, unroll(same, None, x)[1].features, atol=1e-6
    )


def test_a_step_that_counts_in_a_variable_is_refused():
    with pytest.raises(TypeError, match="of CountingLSTM may change only its carry, but it changes 'steps'"):
        unroll(CountingLSTM(F, 4, rngs=nnx.Rngs(0)), None, jnp.ones((T, B, F)))


class CountingOutside(MNMCell):
    """Counts its steps in an attribute."""

    count = 0

    def __call__(self, carry, inputs):
        self.count = self.count + 1
        return super().__call__(carry, inputs * self.count)


@pytest.mark.parametrize("form", ["auto", "plain", "reversible"])
def test_a_step_that_counts_in_an_attribute_is_refused(form):
    cell = CountingOutside(F, 4, matrix_memory(2, 2), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="of CountingOutside may change only its carry, but it changes its attributes"):
        unroll(cell, None, jnp.ones((T, B, F)), form=form)


def memory_of(size, dtype=jnp.float32):
    """Returns a memory whose rule writes the error times a number from outside, as a learned plasticity."""

    def rule(network, weights, keys, values):
        answers = weights.product(0, keys)
        return (Pair(keys, size * (answers - values)),), answers

    return rule_memory(2, 2, rule, initial_gain=0.0, param_dtype=dtype)


@pytest.mark.parametrize("jitted", [False, True])
def test_a_value_that_a_rule_closes_over_gets_its_gradient(jitted, x64):
    """After three writes with one key of length 1 a read has the share 1 - (1 - 0.5 size)^3 of its value."""
    params = memory_of(1.0, jnp.float64).init(jax.random.key(0))
    key = jnp.broadcast_to(jnp.array([0.6, 0.8]), (3, 1, 1, 2))
    rate = jnp.full((3, 1), 0.5)

    def read(size):
        return jnp.sum(unroll_memory(memory_of(size, jnp.float64), params, None, key, key, rate, key)[2][2, 0, 0])

    derivative = (jax.jit(jax.grad(read)) if jitted else jax.grad(read))(jnp.float64(0.7))
    np.testing.assert_allclose(derivative, 1.4 * 3 * 0.65**2 * 0.5, rtol=1e-12)


def test_a_value_that_a_rule_closes_over_runs_plain_or_is_refused():
    x = jax.random.normal(jax.random.key(0), (T, B, F))

    def loss(size, form):
        cell = MNMCell(F, 4, memory_of(size), rngs=nnx.Rngs(0))
        return jnp.sum(unroll(cell, None, x, form=form)[1].features)

    plain = jax.grad(loss)(0.7, "plain")
    step = (loss(0.701, "plain") - loss(0.699, "plain")) / 0.002
    np.testing.assert_allclose(plain, step, rtol=1e-2)
    assert jax.grad(loss)(0.7, "auto") == plain
    for form in ("reversible", "factored"):
        assert np.isfinite(loss(0.7, form))  # a number is part of the program
        with pytest.raises(ValueError, match="closes over, and that would get no gradient .* form='plain'"):
            jax.grad(loss)(0.7, form)


@pytest.mark.parametrize("form", ["auto", "plain", "reversible", "factored"])
def test_the_carry_of_a_memory_with_other_write_options_is_refused_in_every_form(form):
    options = [WriteOptions(), WriteOptions(forget=True), WriteOptions(forget=True, momentum=True)]
    plain, forgets, moves = (
        MNMCell(F, 4, local_memory(2, 2, hidden_sizes=(), options=given), rngs=nnx.Rngs(0)) for given in options
    )
    x = jnp.ones((T, B, F))
    for other in (forgets, moves):
        carry = other.initialize_carry((B, F))
        with pytest.raises(TypeError, match="of MNMCell, a MemoryState, got a GatedState, .* or of one with other"):
            unroll(plain, carry, x, form=form)
    if form in ("auto", "plain"):
        with pytest.raises(TypeError, match="a GatedState, got a MemoryState"):
            unroll(moves, plain.initialize_carry((B, F)), x, form=form)
