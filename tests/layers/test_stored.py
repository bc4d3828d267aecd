"""Tests how much memory a gradient through the layer takes, as the layer's docstring states."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mnm_jax import NeuralMemoryLayer, WriteOptions, matrix_memory

D, K, B, H = 6, 4, 2, 2


@pytest.mark.parametrize(("forget", "numbers"), [pytest.param(False, 2, marks=pytest.mark.slow), (True, 4)])
def test_coefficients_take_memory_in_proportion_to_the_chunk(forget, numbers):
    memory = matrix_memory(K, K, options=WriteOptions("l2", forget=forget))

    def temp_bytes(chunk, steps):
        layer = NeuralMemoryLayer(D, memory, heads=H, chunk=chunk, rngs=nnx.Rngs(0))
        gradient = jax.jit(jax.grad(lambda layer, x: jnp.sum(layer(None, x)[1] ** 2)))
        compiled = gradient.lower(layer, jnp.zeros((steps, B, D))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def per_token(chunk):
        """Returns the numbers that a token and head add, without the weights between chunks."""
        return (temp_bytes(chunk, 1024) - temp_bytes(chunk, 512)) / (512 * B * H * 4) - K * K / chunk

    assert (per_token(32) - per_token(8)) / 24 == pytest.approx(numbers, abs=0.5)
