"""Tests the equations of `MNMCell` against a loop over one example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import MNMCell, gradient_memory, local_memory, unroll
from tests.cells.test_dnc import sigmoid, simple_lstm

T, B, D, HIDDEN, K, V, H = 4, 2, 3, 5, 4, 2, 3


def affine(linear, x):
    return x @ np.asarray(linear.kernel) + np.asarray(linear.bias)


def interact(cell, h):
    """Returns the write rate, write keys, write values and read keys of one example."""
    u = affine(cell.interaction, h)
    if cell.norm is None:
        u = np.tanh(u)
    else:
        centred = u - u.mean()
        u = centred / np.sqrt(np.mean(centred**2) + 1e-6) * np.asarray(cell.norm.scale) + np.asarray(cell.norm.bias)
    beta = sigmoid(affine(cell.rate, u[:K]))[0]
    return beta, *np.split(u[K:].reshape(H, 2 * K + V), [K, K + V], axis=1)


@pytest.mark.parametrize("options", [{}, {"out_features": 6, "interaction": "layer_norm"}, {"read_first": True}])
def test_a_step_is_the_papers(options, x64):
    """The memory is a matrix that each step writes by one gradient step on the mean square over heads and features."""
    memory = gradient_memory(K, V, hidden_sizes=(), step_size="paper", param_dtype=jnp.float64)
    cell = MNMCell(D, HIDDEN, memory, heads=H, **options, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    params = nnx.state(cell, nnx.Param)
    nnx.update(cell, jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape) / 3, params))
    inputs = rng.normal(size=(T, B, D))
    with jax.numpy_dtype_promotion("standard"):  # flax's LayerNorm in float64 needs it
        carry, outputs = jax.device_get(jax.jit(unroll)(cell, None, inputs))
    (start,) = cell.memory_params.get_value().weights
    for b in range(B):
        c, h, read, w = np.zeros(HIDDEN), np.zeros(HIDDEN), np.zeros(V), np.array(start)
        for t in range(T):
            c, h = simple_lstm(cell.controller, c, h, np.concatenate([inputs[t, b], read]))
            beta, keys, values, asked = interact(cell, h)
            before = w
            w = w - beta * sum(2 / (H * V) * np.outer(k, k @ w - v) for k, v in zip(keys, values, strict=True))
            read = np.mean([q @ (before if cell.read_first else w) for q in asked], axis=0)
            features = np.concatenate([h, read])
            if cell.readout is not None:
                features = affine(cell.readout, features)
            np.testing.assert_allclose(outputs.features[t, b], features, rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(outputs.meta_loss[t, b], np.mean((keys @ w - values) ** 2), rtol=1e-8)
        np.testing.assert_allclose(carry.memory.weights[0][b], w, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(carry.read[b], read, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("window", [1, 3])
def test_the_measures_of_a_cell_in_bfloat16_are_in_float32_in_every_form(window):
    memory, forms = local_memory(K, V, hidden_sizes=()), ("plain", "reversible", "factored")
    sizes = {"heads": 2, "meta_window": window}
    cell = MNMCell(D, HIDDEN, memory, **sizes, dtype=jnp.bfloat16, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(0), (T, B, D))

    def differentiate(form):
        def loss(cell):
            outputs = unroll(cell, None, inputs, form=form)[1]
            return jnp.sum(outputs.meta_loss + outputs.write.update_norm), outputs

        return jax.jit(jax.grad(loss, has_aux=True))(cell)

    expected, outputs = differentiate("plain")
    measures = (outputs.meta_loss, *outputs.write)
    assert {leaf.dtype for leaf in measures} == {jnp.dtype(jnp.float32)}
    assert np.any(np.asarray(outputs.meta_loss.astype(jnp.bfloat16), np.float32) != outputs.meta_loss)  # not 8 bits
    for form in forms[1:]:
        gradient, found = differentiate(form)
        for a, b in zip((found.meta_loss, *found.write), measures, strict=True):
            np.testing.assert_allclose(a, b, rtol=0.05, atol=1e-3)  # products are in bfloat16
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=0.05 * np.abs(b).max())
