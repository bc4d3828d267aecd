"""Tests several inner steps of a write together with gates, and with layers that are written one after another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnm_jax import WriteOptions, gradient_memory, local_memory

B, H, K, V, HIDDEN = 2, 2, 4, 3, 5
RATE, FORGET, MOMENTUM = np.array([0.4, 0.9]), np.array([0.1, 0.6]), np.array([0.3, 0.8])


def normal(seed, *shape):
    return np.asarray(jax.random.normal(jax.random.key(seed), shape, jnp.float64))


def test_momentum_acts_in_every_inner_step_and_forgetting_in_the_first(x64):
    """The memory is a matrix; the gradient of the sum of squares over heads is 2 k (x) (k W - v)."""
    options = WriteOptions(inner_steps=3, forget=True, momentum=True)
    memory = gradient_memory(K, V, hidden_sizes=(), step_size="sum", param_dtype=jnp.float64, options=options)
    params = memory.init(jax.random.key(0))
    keys, values = normal(1, B, H, K) / 3, normal(2, B, H, V)
    written, _ = jax.jit(memory.write)(
        params, memory.start(params, B), keys, values, RATE, forget=FORGET, momentum=MOMENTUM
    )
    for b in range(B):
        w, surprise = np.array(params.weights[0]), 0.0
        for inner in range(3):
            surprise = MOMENTUM[b] * surprise - RATE[b] * 2 * keys[b].T @ (keys[b] @ w - values[b])
            w = (1 - FORGET[b] if inner == 0 else 1) * w + surprise
        np.testing.assert_allclose(written.weights[0][b], w, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(written.surprise[0][b], surprise, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("inner_steps", [1, 2])
def test_a_write_layer_by_layer_forgets_once(inner_steps, x64):
    options = WriteOptions(inner_steps=inner_steps, forget=True, momentum=True)
    memory = local_memory(
        K, V, hidden_sizes=(HIDDEN,), write_through=True, step_size="sum", param_dtype=jnp.float64, options=options
    )
    params = memory.init(jax.random.key(0))
    keys, values = normal(1, B, 1, K) / 3, normal(2, B, 1, V)
    written, _ = jax.jit(memory.write)(
        params, memory.start(params, B), keys, values, RATE, forget=FORGET, momentum=MOMENTUM
    )
    kernel, bias = map(np.asarray, params.targets)
    for b in range(B):
        weights = [np.array(w) for w in params.weights]
        surprise = [np.zeros_like(w) for w in weights]
        for inner in range(inner_steps):
            x = keys[b, 0]
            for layer, target in enumerate(np.split(values[b, 0] @ kernel + bias, [HIDDEN])):
                answer = x @ weights[layer]
                error = (answer if layer else np.tanh(answer)) - target
                surprise[layer] = MOMENTUM[b] * surprise[layer] - RATE[b] * 2 * np.outer(x, error)
                weights[layer] = (1 - FORGET[b] if inner == 0 else 1) * weights[layer] + surprise[layer]
                x = np.tanh(x @ weights[layer])
        for found, expected in zip(written.weights, weights, strict=True):
            np.testing.assert_allclose(found[b], expected, rtol=1e-10, atol=1e-12)
