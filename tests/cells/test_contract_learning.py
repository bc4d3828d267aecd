"""Tests that every cell learns to recall the first of six symbols."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mnm_jax.training import make_optimizer

T, B, SYMBOLS, D, STEPS = 6, 64, 4, 6, 400
VECTORS = jnp.asarray(np.random.default_rng(0).normal(size=(SYMBOLS + 1, D)), jnp.float32)


def draw(key, size=B):
    """Returns inputs `[T, B, D]` (a symbol, four distractors, a query step) and the first symbols `[B]`."""
    symbols = jax.random.randint(key, (T, size), 0, SYMBOLS)
    return VECTORS[symbols.at[-1].set(SYMBOLS)], symbols[0]


def test_learns_to_recall_the_first_input(make, common):
    cell = make(jnp.float32, in_features=D, hidden=16)
    size = jax.eval_shape(common.features, cell, draw(jax.random.key(0))[0]).shape[-1]
    graphdef, params = nnx.split((cell, nnx.Linear(size, SYMBOLS, rngs=nnx.Rngs(1))))
    optimizer = make_optimizer(learning_rate=1e-2, steps=STEPS)

    def answer(params, x):
        cell, head = nnx.merge(graphdef, params)
        return head(common.features(cell, x)[-1])

    def loss(params, x, first):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(answer(params, x), first))

    def step(state, key):
        params, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(loss)(params, *draw(key)), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    @jax.jit
    def train(params, keys):
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    @jax.jit
    def accuracy(params):
        x, first = draw(jax.random.key(1), 512)
        return jnp.mean(jnp.argmax(answer(params, x), -1) == first)

    trained = train(params, jax.random.split(jax.random.key(0), STEPS))
    assert accuracy(params) < 0.5  # chance is 0.25
    assert accuracy(trained) > 0.95
