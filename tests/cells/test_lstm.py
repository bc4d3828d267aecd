"""Tests an LSTM in `unroll`, with its products outside of the loop and its own derivative, against its equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import LSTMCell, unroll
from mnm_jax.cells import _lstm

T, B, D, H = 5, 2, 3, 2


class ByAutodiff(LSTMCell):
    """The equations of the docstring, without a derivative of their own."""

    def __call__(self, carry, inputs):
        c, h = carry
        i, f, g, o = jnp.split(self.dense_i(inputs) + self.dense_h(h), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h


def make(kind=LSTMCell, dtype=jnp.float64):
    return kind(D, H, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))


def arguments(cell, seed=0):
    draw = functools.partial(jax.random.normal, dtype=cell.dtype)
    keys = jax.random.split(jax.random.key(seed), 6)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * draw(keys[0], leaf.shape), nnx.state(cell))
    return params, (draw(keys[1], (B, H)), draw(keys[2], (B, H))), draw(keys[3], (T, B, D))


FLAGS = {
    "mask": np.array([[1, 1], [1, 0], [1, 1], [0, 1], [1, 0]], bool),
    "reset": np.array([[0, 0], [0, 1], [1, 0], [0, 0], [0, 1]], bool),
    "fork": np.array([[0, 1], [1, 0], [0, 0], [0, 0], [1, 0]], bool),
}
OPTIONS = {
    "chunks": {},
    "flags": FLAGS,
    "checkpoints": {**FLAGS, "checkpoint_every": 2},
}


def program(kind, options):
    graphdef = nnx.graphdef(make(kind))

    def value(params, carry, inputs):
        last, features = unroll(nnx.merge(graphdef, params), carry, inputs, **options)
        weights = jnp.arange(1.0, 1 + features.size).reshape(features.shape)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in last) + jnp.sum(weights * jnp.sin(features)), (last, features)

    return value


@functools.cache
def derivatives(kind, name):
    """Returns a compiled function: value and gradient, and their derivatives along a direction, in forward mode."""
    gradient = jax.value_and_grad(program(kind, OPTIONS[name]), argnums=(0, 1, 2), has_aux=True)
    return jax.jit(lambda at, along: jax.jvp(lambda given: gradient(*given), (at,), (along,)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_derivatives_of_two_orders_equal_those_of_the_equations(name, monkeypatch):
    monkeypatch.setattr(_lstm, "_CHUNK", 2 if name == "chunks" else T)
    at, along = arguments(make()), arguments(make(), seed=1)
    found, expected = (derivatives(kind, name)(at, along) for kind in (LSTMCell, ByAutodiff))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), found, expected)
