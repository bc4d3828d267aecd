"""Tests that every cell learns to recall the first of five symbols."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mnm_jax.training import make_optimizer

T, B, SYMBOLS, D, UPDATES = 5, 32, 4, 6, 300
VECTORS = jnp.asarray(np.random.default_rng(0).normal(size=(SYMBOLS + 1, D)), jnp.float32)


def draw(key):
    """Returns inputs `[T, B, D]` (a symbol, three distractors, a query step) and the first symbols `[B]`."""
    symbols = jax.random.randint(key, (T, B), 0, SYMBOLS)
    return VECTORS[symbols.at[-1].set(SYMBOLS)], symbols[0]


SLOW = ("rnn", "plastic", "chain-p", "mnm-p-window", "mnm-p-follow", "mnm-p-gated", "chain-g", "salu", "neuromodulated")
SLOW += ("ntm", "dnc")


@pytest.mark.parametrize(
    "make",
    [
        "mnm-p",
        "mnm-g",
        "lstm",
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
    indirect=True,
)
def test_learns_to_recall_the_first_input(make, common):
    """The accuracy is that on the batch of each update, before the update; every batch is new."""
    cell = make(jnp.float32, in_features=D, hidden=16)
    graphdef, params = nnx.split((cell, nnx.Linear(cell.out_features, SYMBOLS, rngs=nnx.Rngs(1))))
    optimizer = make_optimizer(learning_rate=1e-2, steps=UPDATES)

    def loss(params, x, first):
        cell, head = nnx.merge(graphdef, params)
        logits = head(common.features(cell, x)[-1])
        accuracy = jnp.mean(jnp.argmax(logits, -1) == first)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, first)), accuracy

    def update(state, key):
        params, opt_state = state
        gradient, accuracy = jax.grad(loss, has_aux=True)(params, *draw(key))
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), accuracy

    @jax.jit
    def train(params, keys):
        return jax.lax.scan(update, (params, optimizer.init(params)), keys)[1]

    accuracy = train(params, jax.random.split(jax.random.key(0), UPDATES))
    assert np.mean(accuracy[:8]) < 0.5  # chance is 0.25
    assert np.mean(accuracy[-16:]) > 0.95
