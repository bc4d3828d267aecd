"""Tests micro-batches: the number chosen for the cache, equal values and gradients, and placement on devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import LSTMCell, MNMCell, local_memory
from mnm_jax.training import choose_micro_batches, value_and_grad_in_micro_batches


def test_micro_batches_by_hand():
    """Three layers of 128 x 128 floats, twice: 384 KiB per example, so 4 MiB hold ten."""
    cell = MNMCell(4, 128, local_memory(128, 128, hidden_sizes=(128, 128)), rngs=nnx.Rngs(0))
    assert [choose_micro_batches(cell, examples, "cpu") for examples in (8, 16, 20, 64, 7)] == [1, 2, 2, 8, 1]
    assert choose_micro_batches(cell, 64, "tpu") == 1
    assert choose_micro_batches(LSTMCell(4, 128, rngs=nnx.Rngs(0)), 1024, "cpu") == 1


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_value_and_gradient_are_those_of_the_whole_batch(count, x64):
    x = jax.random.normal(jax.random.key(0), (5, 6, 2), jnp.float64)
    batch = {"x": x, "weight": jnp.arange(30, dtype=jnp.float64).reshape(5, 6)}

    def function(params, batch):
        y = jnp.sum(jnp.tanh(batch["x"] @ params[:, None]) * batch["weight"][..., None])
        return y, (jnp.sum(batch["weight"]), y**1)

    params = jnp.array([0.3, -0.7], jnp.float64)
    expected = jax.value_and_grad(function, has_aux=True)(params, batch)
    result = jax.jit(value_and_grad_in_micro_batches(function, count))(params, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), result, expected)


def test_micro_batches_stay_on_their_devices():
    """Example g of the first part of a divided batch is in one micro-batch with example g of the second part."""
    seen = []

    def function(params, batch):
        jax.debug.callback(lambda x: seen.append(np.asarray(x[0]).tolist()), batch, ordered=True)
        return jnp.sum(params * batch), ()

    value_and_grad_in_micro_batches(function, 3)(jnp.ones(()), jnp.arange(6.0)[None])
    jax.effects_barrier()
    assert seen == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    "count, error, message",
    [
        (0, ValueError, "count must be >= 1, got 0"),
        (2.0, TypeError, "count must be an integer >= 1, got 2.0 of type float"),
        (4, ValueError, r"count must divide the examples of the batch, got count=4 for leaves \(3, 6\)"),
    ],
)
def test_a_count_that_does_not_fit_is_named(count, error, message):
    with pytest.raises(error, match=message):
        value_and_grad_in_micro_batches(lambda params, batch: (jnp.sum(params * batch), 0.0), count)(
            1.0, jnp.ones((3, 6))
        )
