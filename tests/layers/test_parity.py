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


def parity_by_hand(memory, max_rate, logit=80.0, **settings):
    """Returns a layer with one key and one value for both bits, whose gate of the rate has the logit -+ `logit`.

    At rate two the answer to the key is reflected at the value, 1: it alternates between 0 and 2. The target of a
    hidden layer is its answer, so that its weights stay.
    """
    layer = NeuralMemoryLayer(2, memory, chunk=16, max_rate=max_rate, **settings, rngs=nnx.Rngs(0))
    layer.to_vectors.kernel[...] = jnp.ones((2, 3))
    layer.to_gates.kernel[...] = jnp.array([[-logit], [logit]])
    layer.to_output.kernel[...] = jnp.array([[1.0, 0.0]])
    params = layer.memory_params.get_value()
    if params.targets is not None:
        hidden, last = (
            jnp.full_like(weights, value) for weights, value in zip(params.weights, (0.5, 0.0), strict=True)
        )
        targets = params.targets._replace(kernel=jnp.array([[[0.0, 1.0]]]), bias=jnp.array([[jnp.tanh(0.5), 0.0]]))
        layer.memory_params.set_value(params._replace(weights=(hidden, last), targets=targets))
    return layer


def bits():
    return np.asarray(jax.random.randint(jax.random.key(0), (T, 2), 0, 2))


run = nnx.jit(lambda layer, bits: layer(None, jax.nn.one_hot(bits, 2))[1][..., 0])


@pytest.mark.parametrize("memory", [matrix_memory(1, 1), deep(True), deep(False)], ids=["matrix", "after", "before"])
def test_a_rate_of_two_computes_parity_of_any_length_and_a_rate_of_one_does_not(memory):
    answers = run(parity_by_hand(memory, 2.0), bits())
    np.testing.assert_allclose(answers, 2 * (np.cumsum(bits(), axis=0) % 2), atol=1e-3)
    answers = run(parity_by_hand(memory, 1.0), bits())
    np.testing.assert_allclose(answers, np.cumsum(bits(), axis=0) > 0, atol=1e-3)


@pytest.mark.parametrize("hard_rate", [True, False])
def test_a_hard_rate_computes_parity_of_any_length_from_logits_as_training_finds_them(hard_rate):
    """With logits of 5 a sigmoid gives rates of 0.013 and 1.987: answers fade to the value 1, between 0 and 2."""
    layer = parity_by_hand(matrix_memory(1, 1), 2.0, logit=5.0, hard_rate=hard_rate)
    error = np.abs(np.asarray(run(layer, bits())) - 2 * (np.cumsum(bits(), axis=0) % 2)).max(1)
    assert np.all(error < 1e-5) if hard_rate else np.all(error[:10] < 0.2) and np.all(error[-10:] > 0.9)
