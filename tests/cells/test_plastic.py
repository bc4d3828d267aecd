"""Tests plastic connections against numpy loops that follow the equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import PlasticCell, unroll

T, B, D, N = 7, 3, 4, 5


def run_by_hand(cell, x):
    """Returns hidden states `[T, B, N]` and the last trace `[B, N, N]`, computed connection by connection."""
    weights, alpha = np.asarray(cell.recurrent.get_value()), np.asarray(cell.alpha.get_value())
    kernel, bias = np.asarray(cell.input.kernel.get_value()), np.asarray(cell.input.bias.get_value())
    hidden, trace = np.zeros((B, N)), np.zeros((B, N, N))
    states = []
    for now in x:
        new = np.zeros((B, N))
        for b in range(B):
            for j in range(N):
                total = now[b] @ kernel[:, j] + bias[j]
                total += sum(hidden[b, i] * (weights[i, j] + alpha[i, j] * trace[b, i, j]) for i in range(N))
                new[b, j] = np.tanh(total)
            for i in range(N):
                for j in range(N):
                    together = hidden[b, i] * new[b, j]
                    if cell.modulated:
                        signal = new[b] @ np.asarray(cell.modulator.kernel.get_value())[:, 0]
                        signal = np.tanh(signal + np.asarray(cell.modulator.bias.get_value())[0])
                        changed = trace[b, i, j] + np.asarray(cell.fan_out.get_value())[j] * signal * together
                        trace[b, i, j] = min(max(changed, -1), 1)
                    else:
                        eta = float(cell.eta.get_value())
                        trace[b, i, j] = (1 - eta) * trace[b, i, j] + eta * together
        hidden = new
        states.append(hidden)
    return np.stack(states), trace


@pytest.mark.parametrize("modulated", [False, True])
def test_both_rules_are_the_papers(x64, modulated):
    cell = PlasticCell(D, N, modulated=modulated, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    cell.alpha.set_value(jax.random.normal(jax.random.key(1), (N, N), jnp.float64))
    if modulated:  # strong enough to reach the limits
        cell.fan_out.set_value(jnp.arange(1.0, 6.0))
    x = 2 * jax.random.normal(jax.random.key(2), (T, B, D), jnp.float64)
    carry, hidden = unroll(cell, None, x)
    states, trace = run_by_hand(cell, np.asarray(x))
    np.testing.assert_allclose(hidden, states, rtol=1e-12)
    np.testing.assert_allclose(carry.trace, trace, rtol=1e-12)
    assert modulated == bool(np.any(np.abs(trace) == 1))


def test_without_alpha_it_is_the_plain_network(x64):
    cell = PlasticCell(D, N, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    cell.alpha.set_value(jnp.zeros((N, N)))
    x = jax.random.normal(jax.random.key(2), (T, B, D), jnp.float64)
    hidden = np.zeros((B, N))
    for now, found in zip(x, unroll(cell, None, x)[1], strict=True):
        hidden = np.tanh(np.asarray(cell.input(now)) + hidden @ np.asarray(cell.recurrent.get_value()))
        np.testing.assert_allclose(found, hidden, rtol=1e-12)


def test_a_rate_of_zero_or_no_signal_leaves_the_trace_at_zero():
    plastic = PlasticCell(D, N, rngs=nnx.Rngs(0))
    plastic.eta.set_value(jnp.zeros(()))
    modulated = PlasticCell(D, N, modulated=True, rngs=nnx.Rngs(0))
    modulated.fan_out.set_value(jnp.zeros(N))
    for cell in (plastic, modulated):
        carry, _ = unroll(cell, None, jnp.ones((T, B, D)))
        assert not np.any(carry.trace)
