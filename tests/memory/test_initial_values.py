"""Tests the initial values and defaults that docstrings state."""

import jax
import numpy as np
import pytest
from flax import nnx

from mnm_jax import NeuralMemoryLayer, WriteOptions, gradient_memory, local_memory, matrix_memory


def test_initial_weights_have_the_gain_and_biases_are_zero():
    memory = gradient_memory(400, 300, hidden_sizes=(200,), initial_gain=0.5, use_bias=True)
    for weights, fan_in in zip(memory.init(jax.random.key(0)).weights, (400, 200), strict=True):
        np.testing.assert_allclose(np.std(weights[:-1]), 0.5 / fan_in**0.5, rtol=0.02)
        assert not np.any(weights[-1])


@pytest.mark.parametrize("make", [gradient_memory, local_memory])
def test_writes_fade_out_below_a_squared_norm_that_depends_on_hidden_layers(make):
    assert make(2, 2, hidden_sizes=(3,)).rule.epsilon == 1e-3
    assert make(2, 2, hidden_sizes=()).rule.epsilon == 1e-8


def test_a_layer_forgets_two_percent_per_token_at_first():
    memory = matrix_memory(2, 2, options=WriteOptions(forget=True))
    layer = NeuralMemoryLayer(3, memory, heads=2, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer.to_gates.bias[...], [0, -4, 0, -4])
