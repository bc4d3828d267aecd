"""Tests the layer against single tokens and published recurrences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnm_jax import WriteOptions, local_memory
from mnm_jax.layers._slots import align
from tests.layers.common import (
    BOTH,
    TWO_LAYERS,
    B,
    D,
    assert_close,
    make_form,
    make_inputs,
    make_layer,
    make_memory,
    run_by_chunks,
    run_by_steps,
    tokens_of,
)


@pytest.mark.parametrize("name", ["gradient-paper", "stale", "convolution"])
def test_chunks_and_single_tokens_give_the_same_wherever_a_sequence_is_divided(name, x64):
    """Chunks of four tokens; the division is in the middle of a chunk."""
    layer, inputs = make_form(name), 0.5 * make_inputs(11)
    expected = run_by_chunks(layer, inputs)
    assert_close(run_by_steps(layer, inputs), expected)
    carry, first = run_by_chunks(layer, inputs[:6])
    for run in (run_by_steps, run_by_chunks):
        last, second = run(layer, inputs[6:], carry)
        assert_close((last, np.concatenate([first, second])), expected)
    assert np.std(expected[1]) > 0.05


@pytest.mark.parametrize("steps", [8, 11])
def test_new_sequences_with_padding_need_no_slots_for_earlier_tokens(steps, x64):
    layer, inputs = make_form("gradient-paper", chunk=8), make_inputs(steps)
    mask = np.random.default_rng(0).random((steps, B)) < 0.7
    zeros = jnp.zeros(B, jnp.int32)
    sizes = [len(align(zeros, mask, 8, fresh=fresh).mask) for fresh in (True, False)]
    assert sizes == {8: [8, 16], 11: [16, 24]}[steps]
    started = run_by_chunks(layer, inputs, layer.initialize_carry(inputs.shape[1:]), mask)
    assert_close(run_by_chunks(layer, inputs, None, mask), started)


def test_an_initial_memory_that_is_not_learned_gets_no_gradient(x64):
    inputs = make_inputs(5)
    for learned in (True, False):
        layer = make_layer(make_memory("gradient", learn_initial=learned), chunk=2)
        gradient = jax.jit(jax.grad(lambda layer: jnp.sum(run_by_chunks(layer, inputs)[1])))(layer)
        (of_weights,) = gradient.memory_params.get_value().weights
        assert np.any(of_weights != 0) == learned


def of_one_example(layer, inputs):
    """Returns keys, values, queries, gates of the first example and head, `[T, ...]`, with keys of length one."""
    keys, values, queries, gates = (np.asarray(part)[:, 0, 0] for part in tokens_of(layer, inputs))
    keys, queries = (part / np.linalg.norm(part, axis=-1, keepdims=True) for part in (keys, queries))
    return zip(keys, values, queries, gates, strict=True)


def first_weights(layer):
    return [np.array(w[0]) for w in layer.memory_params.get_value().weights]


def test_it_is_deltanet(x64):
    layer, inputs = make_layer(make_memory("delta", WriteOptions("l2")), chunk=4), make_inputs(9)
    (weights,), expected = first_weights(layer), []
    for k, v, q, (beta,) in of_one_example(layer, inputs):
        weights = weights - beta * np.outer(k, k @ weights - v)
        expected.append(q @ weights @ np.asarray(layer.to_output.kernel))
    assert_close(np.asarray(run_by_chunks(layer, inputs)[1])[:, 0], np.array(expected))


def test_it_is_gated_deltanet(x64):
    layer, inputs = make_layer(make_memory("delta", WriteOptions("l2", forget=True)), chunk=4), make_inputs(9)
    (weights,), expected = first_weights(layer), []
    for k, v, q, (beta, alpha) in of_one_example(layer, inputs):
        weights = (1 - alpha) * weights - beta * np.outer(k, k @ weights - v)
        expected.append(q @ weights @ np.asarray(layer.to_output.kernel))
    assert_close(np.asarray(run_by_chunks(layer, inputs)[1])[:, 0], np.array(expected))


def test_it_is_linear_attention(x64):
    """The output is queries by keys times values, weighted by the rates, plus the read of the initial memory."""
    layer, inputs = make_layer(make_memory("hebbian", WriteOptions("l2")), chunk=4), make_inputs(9)
    keys, values, queries, rates = map(np.array, zip(*of_one_example(layer, inputs), strict=True))
    attention = np.tril(queries @ keys.T) * rates.T
    expected = (queries @ first_weights(layer)[0] + attention @ values) @ np.asarray(layer.to_output.kernel)
    assert_close(np.asarray(run_by_chunks(layer, inputs)[1])[:, 0], expected)


def test_it_is_the_memory_of_titans(x64):
    """Compares with equations 13 and 14 by autodiff: two layers, gradients at the beginning of each chunk of three.

    Our loss is the sum of squares. Titans' rate theta belongs to half of that sum, so it is twice our rate.
    """
    layer = make_layer(make_memory("gradient", BOTH, hidden_sizes=(6,), step_size="sum"), chunk=3, stale=True)
    inputs = make_inputs(8)
    now = start = first_weights(layer)
    surprise, expected = [np.zeros_like(w) for w in now], []

    @jax.jit
    def answer(weights, x):
        return jnp.tanh(x @ weights[0]) @ weights[1]

    slope = jax.jit(jax.grad(lambda w, k, v: 0.5 * jnp.sum((answer(w, k) - v) ** 2)))
    for t, (k, v, q, (rate, alpha, eta)) in enumerate(of_one_example(layer, inputs)):
        start = now if t % 3 == 0 else start
        gradient = slope(start, k, v)
        surprise = [eta * s - 2 * rate * np.asarray(g) for s, g in zip(surprise, gradient, strict=True)]
        now = [(1 - alpha) * w + s for w, s in zip(now, surprise, strict=True)]
        expected.append(np.asarray(answer(now, q)) @ np.asarray(layer.to_output.kernel))
    assert_close(np.asarray(run_by_chunks(layer, inputs)[1])[:, 0], np.array(expected))


def test_inputs_of_zeros_have_finite_gradients():
    layer = make_layer(make_memory("gradient", WriteOptions("l2"), jnp.float32, **TWO_LAYERS), jnp.float32, chunk=4)
    gradient = jax.jit(jax.grad(lambda layer: jnp.sum(run_by_chunks(layer, np.zeros((6, B, D), np.float32))[1])))(layer)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_time_may_be_the_second_axis(x64):
    layer, inputs, mask = make_form("delta"), make_inputs(7), np.ones((7, B), bool)
    mask[4:, 0] = False
    run = jax.jit(lambda layer, inputs, mask: layer(None, inputs, mask=mask, time_major=False))
    carry, outputs = run(layer, inputs.swapaxes(0, 1), mask.T)
    assert_close((carry, np.swapaxes(outputs, 0, 1)), run_by_chunks(layer, inputs, mask=mask))


@pytest.mark.parametrize("name", ["delta", "gradient"])
def test_no_tokens_and_no_examples_give_empty_results(name, x64):
    layer, inputs = make_form(name), make_inputs(6)
    carry = layer.initialize_carry((B, D))
    same, outputs = run_by_chunks(layer, inputs[:0], carry)
    assert outputs.shape == (0, B, D)
    assert_close(same, carry, rtol=0, atol=0)
    assert run_by_chunks(layer, inputs[:, :0])[1].shape == (6, 0, D)


def test_half_precision_keeps_the_memory_in_single():
    inputs = make_inputs(12, jnp.float32)
    memory = make_memory("local", WriteOptions("l2", forget=True), jnp.float32, **TWO_LAYERS)
    whole = make_layer(memory, jnp.float32, chunk=4, heads=2)
    half = make_layer(memory, jnp.float32, chunk=4, heads=2, dtype=jnp.bfloat16)
    carry, outputs = run_by_chunks(half, inputs)
    assert outputs.dtype == jnp.bfloat16
    assert {w.dtype for w in jax.tree.leaves(carry.memory)} == {jnp.dtype(jnp.float32)}
    stepped, by_steps = run_by_steps(half, inputs)
    expected_carry, expected = run_by_chunks(whole, inputs)
    for found in (outputs, by_steps):
        assert_close(np.asarray(found, np.float32), expected, rtol=0.05)
    for state in (carry, stepped):
        assert_close(state.memory, expected_carry.memory, rtol=0.05)


def test_long_keys_in_float16():
    """Products of two keys are 600,000 here, above the largest number of float16; answers are about 400."""
    inputs = 100 * make_inputs(32, jnp.float32)
    memory = local_memory(64, 16, hidden_sizes=())
    half, single = (make_layer(memory, jnp.float32, chunk=16, dtype=dtype) for dtype in (jnp.float16, jnp.float32))
    expected = run_by_chunks(single, inputs, return_loss=True)[1]
    keys = (inputs @ single.to_vectors.kernel.get_value())[..., :64]
    assert jnp.max(jnp.sum(keys**2, -1)) > float(jnp.finfo(jnp.float16).max)
    for run in (run_by_chunks, run_by_steps):
        found = run(half, inputs, return_loss=True)[1]
        assert_close(np.asarray(found.features, np.float32), expected.features, rtol=2e-3)
        assert_close(found.loss_before, expected.loss_before, rtol=5e-3)


def test_losses_are_zero_for_padding_and_follow_the_time_axis(x64):
    layer, inputs, mask = make_form("delta"), make_inputs(7), np.ones((7, B), bool)
    mask[2:4, 0] = False
    _, (_, losses) = run_by_chunks(layer, inputs, mask=mask, return_loss=True)
    np.testing.assert_array_equal(np.asarray(losses) != 0, np.broadcast_to(mask[..., None], losses.shape))
    by_example = jax.jit(lambda layer, x, m: layer(None, x, mask=m, return_loss=True, time_major=False))
    _, (_, swapped) = by_example(layer, inputs.swapaxes(0, 1), mask.T)
    assert_close(np.swapaxes(swapped, 0, 1), losses)


@pytest.mark.parametrize("dtype", [bool, jnp.int32])
def test_inputs_of_other_dtypes_are_converted(dtype):
    """In calls and in steps; padding gets no gradient and leaves the carry bit-equal."""
    layer = make_layer(make_memory("delta", dtype=jnp.float32), jnp.float32, chunk=2, convolution=2)
    inputs = jax.random.bernoulli(jax.random.key(0), 0.5, (3, B, D)).astype(dtype)
    mask = jnp.ones((3, B), bool).at[1:, 0].set(False)

    @jax.jit
    def run(layer, inputs):
        def loss(layer):
            carry, outputs = layer(None, inputs, mask=mask)
            return jnp.sum(outputs**2), (carry, outputs, layer.step(carry, inputs[0], mask=mask[2]))

        return jax.grad(loss, has_aux=True)(layer)

    found = run(layer, inputs)
    assert_close(found, run(layer, inputs.astype(jnp.float32)), rtol=0, atol=0)
    assert_close(found[0], run(layer, inputs.at[1:, 0].set(jnp.ones((), dtype)))[0], rtol=0, atol=0)
    with pytest.raises(TypeError, match="inputs must be an array of floating-point numbers, got dtype complex64"):
        layer.step(None, inputs[0].astype(jnp.complex64))
