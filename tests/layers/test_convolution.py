"""Tests the short convolution against numpy, and that neither cuts nor padding change its outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import NeuralMemoryLayer, local_memory
from mnm_jax.layers._convolution import ShortConvolution
from tests.layers.common import run_by_chunks

T, B, F = 7, 3, 4


def make(taps=3):
    layer = ShortConvolution(F, taps, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    return layer, np.random.default_rng(1).normal(size=(T, B, F))


@jax.jit
def run(layer, window, inputs, mask=None):
    return layer(window, inputs, mask)


def by_numpy(kernel, inputs):
    """Returns the outputs of one example `[T, F]`."""
    sums = np.zeros_like(inputs)
    for t in range(len(inputs)):
        for j in range(min(len(kernel), t + 1)):
            sums[t] += kernel[j] * inputs[t - j]
    return sums / (1 + np.exp(-sums))


def test_it_weighs_the_last_tokens(x64):
    layer, inputs = make()
    _, outputs = run(layer, layer.initialize_carry(B, jnp.float64), inputs)
    for b in range(B):
        expected = by_numpy(np.asarray(layer.kernel.get_value()), inputs[:, b])
        np.testing.assert_allclose(np.asarray(outputs)[:, b], expected, 1e-12)


@pytest.mark.parametrize("cut", [0, 1, 2, 5])
def test_it_continues_where_it_was_left(cut, x64):
    layer, inputs = make(4)
    start = layer.initialize_carry(B, jnp.float64)
    whole = run(layer, start, inputs)
    window, first = run(layer, start, inputs[:cut])
    window, second = run(layer, window, inputs[cut:])
    np.testing.assert_array_equal(window, whole[0])
    np.testing.assert_allclose(np.concatenate([first, second]), whole[1], 1e-12)


def test_padding_anywhere_is_as_if_it_were_not_there(x64):
    layer, inputs = make()
    real = np.array([[1, 1, 0, 1, 0, 1, 1], [0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0]], bool).T
    begun = np.asarray(run(layer, layer.initialize_carry(B, jnp.float64), 2 * inputs)[0])
    window, outputs = jax.device_get(run(layer, begun, inputs, real))
    for b in range(B):
        kept, expected = jax.device_get(run(layer, begun[b : b + 1], inputs[real[:, b], b : b + 1]))
        np.testing.assert_allclose(outputs[real[:, b], b], expected[:, 0], 1e-12)
        np.testing.assert_array_equal(window[b], kept[0])
    slope = jax.jit(jax.grad(lambda x: jnp.sum(jnp.where(real[..., None], layer(begun, x, real)[1], 0))))(inputs)
    assert np.all(np.asarray(slope)[~real] == 0) and np.all(np.asarray(slope)[real] != 0)


def test_a_layer_with_padding_continues_as_one_without(x64):
    memory = local_memory(3, 3, hidden_sizes=(), param_dtype=jnp.float64)
    layer = NeuralMemoryLayer(F, memory, chunk=1, convolution=3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    _, inputs = make()
    mask = np.ones((T, B), bool)
    mask[2:5] = False
    carry, _ = run_by_chunks(layer, inputs, mask=mask)
    expected, _ = run_by_chunks(layer, inputs[mask[:, 0]])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-12), carry.memory.now, expected.memory.now)
    np.testing.assert_array_equal(carry.window, expected.window)


def test_a_convolution_of_nothing_is_refused():
    with pytest.raises(ValueError, match="taps must be >= 1, got 0"):
        make(0)
