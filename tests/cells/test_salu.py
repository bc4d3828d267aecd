"""Tests the LSTM with a table against a loop over one example."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnm_jax import SALUCell, unroll
from tests.cells.test_dnc import simple_lstm, softmax


def test_a_step_is_that_of_the_docstring(x64):
    """Seven writes overwrite the oldest of three slots; in the first two steps not every slot is written."""
    slots, width = 3, 2
    cell = SALUCell(4, 5, slots=slots, memory_features=width, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    inputs = np.random.default_rng(0).normal(size=(7, 2, 4))
    _, outputs = jax.device_get(jax.jit(unroll)(cell, None, inputs))
    for b in range(2):
        c, h, read, table = np.zeros(5), np.zeros(5), np.zeros(width), []
        for t in range(7):
            c, h = simple_lstm(cell.controller, c, h, np.concatenate([inputs[t, b], read]))
            vectors = np.tanh(h @ np.asarray(cell.interface.kernel) + np.asarray(cell.interface.bias))
            key, value, asked = np.split(vectors, 3)
            table = [*table, (key, value)][-slots:]
            attention = softmax(np.array([asked @ k / width**0.5 for k, _ in table]))
            read = attention @ np.array([v for _, v in table])
            np.testing.assert_allclose(outputs.features[t, b], np.concatenate([h, read]), rtol=1e-9, atol=1e-11)
