"""Tests that a reset keeps numbers that are not finite out of the sequences after it, as single tokens do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnm_jax import WriteOptions
from tests.layers.common import (
    BOTH,
    TWO_LAYERS,
    B,
    D,
    assert_close,
    make_inputs,
    make_layer,
    make_memory,
    run_by_chunks,
    run_by_steps,
)

T = 10
# In the middle of a chunk of four, and at the beginning of the last one.
RESET = jnp.zeros((T, B), bool).at[5, 0].set(True).at[8, 1].set(True)
LAYERS = {
    "local": (("local", BOTH), TWO_LAYERS, {"convolution": 2}),
    "through": (("local", WriteOptions("layer", forget=True)), TWO_LAYERS | {"write_through": True}, {}),
    "delta": (("delta", WriteOptions("l2", forget=True)), {}, {"heads": 2}),
    "hebbian": (("hebbian", BOTH), {}, {}),
    "one by one": (("gradient", BOTH), TWO_LAYERS, {"chunk": 1}),
}


@functools.cache
def make(name):
    given, settings, of_layer = LAYERS[name]
    return make_layer(make_memory(*given, **settings), **({"chunk": 4} | of_layer))


@functools.partial(jax.jit, static_argnums=0)
def run_and_differentiate(run, layer, inputs, carry, counts):
    """Returns carry, outputs and losses, and the gradients of those that count, `[T, B]`."""

    def value(layer, inputs, carry):
        carry, results = run(layer, inputs, carry, reset=RESET, return_loss=True)
        total = sum(jnp.sum(jnp.where(counts[..., None], jnp.sin(x), 0)) for x in results)
        return total + sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(carry)), (carry, results)

    gradients, results = jax.grad(value, (0, 1, 2), has_aux=True)(layer, inputs, carry)
    return results, gradients


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("name", LAYERS)
def test_a_token_reaches_up_to_the_next_reset(name, number, x64):
    """The second example's token is in a chunk before that of its reset."""
    layer, clean = make(name), make_inputs(T)
    faulty = clean.copy()
    faulty[6, 1] = number
    faulty[4, 0, 2] = number
    after = jnp.cumsum(RESET, 0) > 0
    carry = layer.initialize_carry((B, D))
    (end, found), (_, of_inputs, _) = run_and_differentiate(run_by_chunks, layer, faulty, carry, after)
    (expected_end, expected), (_, expected_slope, _) = run_and_differentiate(run_by_chunks, layer, clean, carry, after)
    assert_close(end, expected_end)
    lost = np.zeros((T, B), bool)
    lost[4, 0] = lost[6:8, 1] = True
    _, by_steps = run_by_steps(layer, faulty, reset=RESET, return_loss=True)
    for a, b, c in zip(found, expected, by_steps, strict=True):
        assert_close(a[~lost], b[~lost])
        np.testing.assert_array_equal(np.isnan(a), np.broadcast_to(lost[..., None], a.shape))
        np.testing.assert_array_equal(~np.isfinite(c), np.broadcast_to(lost[..., None], a.shape))
    assert_close(of_inputs[after], expected_slope[after])


@pytest.mark.parametrize("name", LAYERS)
def test_a_carry_reaches_up_to_the_first_reset(name, x64):
    """With the gradients of what comes after it."""
    layer, inputs = make(name), make_inputs(T)
    carry = layer.initialize_carry((B, D))
    after = jnp.cumsum(RESET, 0) > 0
    faulty = jax.tree.map(lambda x: x.at[0].set(jnp.nan), carry)
    (end, found), (_, of_inputs, _) = run_and_differentiate(run_by_chunks, layer, inputs, faulty, after)
    (expected_end, expected), (_, slope, _) = run_and_differentiate(run_by_chunks, layer, inputs, carry, after)
    assert_close(end, expected_end)
    for a, b in zip(found, expected, strict=True):
        assert_close(a[after], b[after])
        assert np.all(np.isnan(a[:5, 0])) and np.all(np.isfinite(a[:, 1]))
    assert_close(of_inputs[after], slope[after])


@pytest.mark.parametrize("name", ["local", "one by one"])
def test_a_carry_that_is_reset_at_the_first_token_gives_finite_gradients_of_all_parameters(name, x64):
    layer, inputs = make(name), make_inputs(5)
    carry = layer.initialize_carry((B, D))
    reset = jnp.zeros((5, B), bool).at[0].set(True)

    @jax.jit
    def slope(layer, carry):
        return jax.grad(lambda layer, c: jnp.sum(jnp.sin(layer(c, inputs, reset=reset)[1])), (0, 1))(layer, carry)

    found = slope(layer, jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), carry))
    assert_close(found, slope(layer, carry))
    assert np.any(jax.tree.leaves(found)[0] != 0)


def test_padding_behind_a_faulty_token_does_not_reach_the_next_sequence(x64):
    """With a convolution, padding has the vectors of the last token; here the sequence begins at padding."""
    layer, clean = make("local"), make_inputs(T)
    mask = jnp.ones((T, B), bool).at[5:7, 0].set(False)
    faulty = clean.copy()
    faulty[4, 0] = np.nan
    found, expected = (run_by_chunks(layer, x, mask=mask, reset=RESET) for x in (faulty, clean))
    assert_close(found[0], expected[0])
    assert_close(found[1][5:], expected[1][5:])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("rule", ["local", "delta"])
def test_in_half_precision_the_sequences_after_a_reset_are_those_without_the_fault(rule, dtype):
    memory = make_memory(rule, dtype=jnp.float32)
    layer = make_layer(memory, jnp.float32, chunk=4, dtype=dtype)
    clean = make_inputs(T).astype(np.float32)
    faulty = clean.copy()
    faulty[4, 0] = np.nan
    found, expected = (run_by_chunks(layer, jnp.asarray(x), reset=RESET)[1] for x in (faulty, clean))
    assert np.all(np.isnan(found[4, 0])) and np.all(np.isfinite(found[5:].astype(jnp.float32)))
    np.testing.assert_array_equal(found[5:], expected[5:])
    np.testing.assert_array_equal(found[:, 1], expected[:, 1])


@pytest.mark.parametrize("chunk", [1, 4])
def test_without_a_reset_a_memory_that_is_not_finite_stays_so(chunk, x64):
    layer = make_layer(make_memory("delta", WriteOptions("l2", forget=True)), chunk=chunk)
    inputs = make_inputs(6)
    inputs[2] = np.nan
    carry, outputs = run_by_chunks(layer, inputs, reset=jnp.zeros((6, B), bool))
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(carry))
    np.testing.assert_array_equal(np.isnan(outputs), np.broadcast_to(np.arange(6)[:, None, None] > 1, outputs.shape))
