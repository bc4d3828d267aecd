"""Tests the window of the meta objective where a write is discarded or the controller is reset."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import MNMCell, local_memory, unroll

T, B, F = 4, 2, 3
FORMS = ("plain", "reversible", "factored")


@pytest.fixture
def cell():
    return MNMCell(F, 5, local_memory(4, 4, hidden_sizes=(4,)), meta_window=3, rngs=nnx.Rngs(0))


def make_inputs(dtype=np.float32):
    return np.random.default_rng(0).normal(size=(T, B, F)).astype(dtype)


unroll_compiled = jax.jit(unroll, static_argnames="form")


def run(cell, form, **flags):
    return unroll_compiled(cell, None, make_inputs(), form=form, **flags)


@pytest.mark.parametrize("form", FORMS)
def test_a_discarded_write_is_not_in_the_window(cell, form):
    """The second step of the first example writes in vain; the window then holds the first write as the last."""
    fork = np.zeros((T, B), bool)
    fork[1, 0] = True
    carry, outputs = run(cell, form, fork_memory=fork)
    np.testing.assert_array_equal(carry.recent.valid, [[1, 1], [1, 1]])
    keys = outputs.trace.write_keys
    np.testing.assert_allclose(carry.recent.keys[0], [keys[3, 0], keys[2, 0]], rtol=1e-6)
    second, _ = unroll_compiled(cell, None, make_inputs()[:2], fork_memory=fork[:2], form=form)
    np.testing.assert_array_equal(second.recent.valid, [[1, 0], [1, 1]])
    np.testing.assert_allclose(second.recent.keys[0, 0], keys[0, 0], rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_window_stays_with_the_memory_if_the_controller_is_reset(cell, form):
    carry, outputs = run(cell, form, reset_controller=np.arange(T)[:, None].repeat(B, 1) == 3)
    np.testing.assert_array_equal(carry.recent.valid, np.ones((B, 2)))
    np.testing.assert_allclose(carry.recent.keys[:, 1], outputs.trace.write_keys[2], rtol=1e-6)


def test_the_loss_is_the_mean_over_the_writes_of_the_window_so_far(x64):
    memory = local_memory(4, 4, hidden_sizes=(4,), param_dtype=jnp.float64)
    cell = MNMCell(F, 5, memory, heads=2, meta_window=3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    params, carry, writes = cell.memory_params.get_value(), cell.initialize_carry((B, F)), []
    read, step = jax.jit(memory.read), jax.jit(lambda cell, carry, now: cell(carry, now))
    for now in make_inputs(np.float64):
        carry, outputs = step(cell, carry, now)
        writes = [(outputs.trace.write_keys, outputs.trace.write_values), *writes][:3]
        losses = [np.mean((read(params, carry.memory, keys) - values) ** 2, (1, 2)) for keys, values in writes]
        np.testing.assert_allclose(outputs.meta_loss, np.mean(losses, axis=0), rtol=1e-10)


@pytest.mark.parametrize("flag", ["fork_memory", "reset_controller", "fork"])
def test_every_form_has_the_same_losses_and_gradients(flag, x64):
    memory = local_memory(4, 4, hidden_sizes=(4,), param_dtype=jnp.float64)
    cell = MNMCell(F, 5, memory, meta_window=3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    flags = {flag: jax.random.bernoulli(jax.random.key(1), 0.5, (T, B))}

    @functools.partial(jax.jit, static_argnums=2)
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def differentiate(cell, inputs, form):
        _, outputs = unroll(cell, None, inputs, form=form, **flags)
        return jnp.sum(outputs.meta_loss * jnp.arange(1.0, T + 1)[:, None])

    expected, *others = (differentiate(cell, make_inputs(np.float64), form) for form in FORMS)
    for found in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), found, expected)
