"""Tests that layers with parameters set by hand compute the parity of a sequence, which takes a write rate of 2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import NeuralMemoryLayer, local_memory, matrix_memory

T = 256


def deep(write_through):
    return local_memory(1, 1, hidden_sizes=(1,), epsilon=0.0, write_through=write_through)


def parity_by_hand(memory, max_rate):
    """Returns a layer with one key and one value for both bits, whose write rate is the largest for a one, else zero.

    At rate two the answer to the key is reflected at the value, 1: it alternates between 0 and 2. The target of a
    hidden layer is its answer, so that its weights stay.
    """
    layer = NeuralMemoryLayer(2, memory, chunk=16, max_rate=max_rate, rngs=nnx.Rngs(0))
    layer.to_vectors.kernel[...] = jnp.ones((2, 3))
    layer.to_gates.kernel[...] = jnp.array([[-80.0], [80.0]])
    layer.to_output.kernel[...] = jnp.array([[1.0, 0.0]])
    params = layer.memory_params.get_value()
    if params.targets is not None:
        hidden, last = (
            jnp.full_like(weights, value) for weights, value in zip(params.weights, (0.5, 0.0), strict=True)
        )
        targets = params.targets._replace(kernel=jnp.array([[[0.0, 1.0]]]), bias=jnp.array([[jnp.tanh(0.5), 0.0]]))
        layer.memory_params.set_value(params._replace(weights=(hidden, last), targets=targets))
    return layer


@pytest.mark.parametrize("memory", [matrix_memory(1, 1), deep(True), deep(False)], ids=["matrix", "after", "before"])
def test_a_rate_of_two_computes_parity_of_any_length_and_a_rate_of_one_does_not(memory):
    bits = jax.random.randint(jax.random.key(0), (T, 2), 0, 2)
    run = nnx.jit(lambda layer, bits: layer(None, jax.nn.one_hot(bits, 2))[1][..., 0])
    expected = np.cumsum(bits, axis=0) % 2
    np.testing.assert_allclose(run(parity_by_hand(memory, 2.0), bits), 2 * expected, atol=1e-3)
    np.testing.assert_allclose(run(parity_by_hand(memory, 1.0), bits), np.cumsum(bits, axis=0) > 0, atol=1e-3)
