"""Tests the model: the dtype of its head, dropout, single steps, and a layer in place of a cell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import LSTMCell, MNMCell, NeuralMemoryLayer, RNNCell, WriteOptions, local_memory, matrix_memory, unroll
from mnm_jax.training import SequenceModel


@nnx.jit
def run(model, inputs, **options):
    return model(inputs, **options)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_the_head_casts_the_features_of_a_cell_in_bfloat16(dtype):
    cell = LSTMCell(3, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    model = SequenceModel(lambda x: x, cell, 5, dtype=dtype, rngs=nnx.Rngs(1))
    inputs = jax.random.normal(jax.random.key(2), (2, 3, 3))
    features = np.asarray(jax.jit(unroll)(cell, None, inputs)[1], np.float32)
    expected = features @ np.asarray(model.head.kernel)
    logits = run(model, inputs).logits
    assert logits.dtype == (dtype or jnp.float32) and model.head.kernel.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(logits, np.float32), expected, atol=1e-6 if dtype is None else 2e-2)


def test_the_hidden_units_of_the_head_by_hand():
    cell = RNNCell(3, 4, rngs=nnx.Rngs(0))
    model = SequenceModel(lambda x: x, cell, 2, readout_features=6, rngs=nnx.Rngs(1))
    model.head.bias[...], model.into.bias[...] = jnp.array([0.5, -1.0]), jnp.linspace(-0.3, 0.3, 6)
    inputs = jax.random.normal(jax.random.key(0), (5, 2, 3))
    features = np.asarray(jax.jit(unroll)(cell, None, inputs)[1])
    units = features @ np.asarray(model.into.kernel) + np.asarray(model.into.bias)
    assert np.any(units < 0) and np.any(units > 0)
    expected = features @ np.asarray(model.head.kernel) + np.asarray(model.head.bias)
    expected = expected + np.maximum(units, 0) @ np.asarray(model.out.kernel)
    np.testing.assert_allclose(run(model, inputs).logits, expected, rtol=1e-5, atol=1e-6)


def test_dropout_by_hand():
    """Each example keeps the same features at all steps, scaled; without noise, as in evaluation, all are kept."""
    cell = RNNCell(400, 2, rngs=nnx.Rngs(0))
    model = SequenceModel(lambda x: x, cell, 5, dropout=0.25, rngs=nnx.Rngs(1))
    ones, seeds = jnp.ones((3, 2, 400)), jnp.array([7, 8], jnp.uint32)
    dropped = np.asarray(model._drop(ones, seeds, 0))
    np.testing.assert_array_equal(dropped, np.broadcast_to(dropped[0], dropped.shape))
    np.testing.assert_allclose(np.unique(dropped), [0, 4 / 3], rtol=1e-6)
    assert abs((dropped[0] == 0).mean() - 0.25) < 0.05 and np.any(dropped[0, 0] != dropped[0, 1])
    assert np.any(model._drop(ones, seeds, 1) != dropped)
    kept = np.asarray(model._drop(jnp.ones((3, 2, 2)), seeds, 1))
    kernel, features = np.asarray(model.head.kernel), jax.jit(lambda x: unroll(cell, None, x)[1])
    expected = (np.asarray(features(dropped)) * kept) @ kernel
    np.testing.assert_allclose(run(model, ones, noise=seeds).logits, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(model, ones).logits, np.asarray(features(ones)) @ kernel, rtol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"classes": 0}, "classes must be >= 1, got 0"),
        ({"classes": 2.0}, "classes must be an integer >= 1, got 2.0 of type float"),
        ({"readout_features": -1}, "readout_features must be >= 0, got -1"),
        ({"readout_features": None}, "readout_features must be an integer >= 0, got None"),
        ({"dropout": 1.0}, "dropout must be < 1, got 1"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\], got -0.1"),
        ({"encoder": None}, "encoder must be a function, got None"),
    ],
)
def test_bad_settings_are_named(changes, message):
    settings = {"encoder": lambda x: x, "classes": 2} | changes
    with pytest.raises((ValueError, TypeError), match=message):
        SequenceModel(cell=LSTMCell(3, 4, rngs=nnx.Rngs(0)), **settings, rngs=nnx.Rngs(1))


def test_padding_that_is_nan_has_no_influence_through_the_encoder():
    cell = LSTMCell(4, 8, rngs=nnx.Rngs(0))
    model = SequenceModel(nnx.Linear(3, 4, rngs=nnx.Rngs(2)), cell, 5, rngs=nnx.Rngs(1))
    inputs = jax.random.normal(jax.random.key(0), (6, 2, 3))
    mask = jnp.ones((6, 2), bool).at[4:, 1].set(False)
    gradient = nnx.jit(nnx.grad(lambda model, inputs: jnp.sum(model(inputs, mask=mask).logits ** 2)))
    spoiled, clean = (gradient(model, jnp.where(mask[..., None], inputs, other)) for other in (jnp.nan, 1.0))
    jax.tree.map(np.testing.assert_array_equal, spoiled, clean)


def test_a_step_resets_the_controller_as_unroll_does():
    cell = MNMCell(3, 8, local_memory(4, 4, hidden_sizes=()), rngs=nnx.Rngs(0))
    model = SequenceModel(lambda x: x, cell, 5, rngs=nnx.Rngs(1))
    inputs = jax.random.normal(jax.random.key(0), (6, 2, 3))
    reset = jnp.zeros((6, 2), bool).at[jnp.array([2, 3, 4]), jnp.array([0, 1, 0])].set(True)

    @nnx.jit
    def compute(model):
        carry, steps = model.start(2), []
        for x, flag in zip(inputs, reset, strict=True):
            carry, logits = model.step(carry, x, reset_controller=flag)
            steps.append(logits)
        return model(inputs, reset_controller=reset).logits, model(inputs).logits, jnp.stack(steps)

    expected, without, found = compute(model)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - without).max() > 1e-2


def test_a_cell_without_a_memory_has_no_reset_of_the_controller():
    model = SequenceModel(lambda x: x, LSTMCell(3, 4, rngs=nnx.Rngs(0)), 5, rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match="reset_controller needs a cell with a neural memory"):
        model.step(model.start(2), jnp.zeros((2, 3)), reset_controller=jnp.ones(2, bool))


def test_a_sequence_model_takes_a_layer():
    memory = matrix_memory(4, 4, options=WriteOptions(key_norm="l2"))
    layer = NeuralMemoryLayer(8, memory, convolution=2, rngs=nnx.Rngs(0))
    model = SequenceModel(nnx.Linear(3, 8, rngs=nnx.Rngs(1)), layer, 5, rngs=nnx.Rngs(2))
    inputs, mask = jax.random.normal(jax.random.key(0), (3, 2, 3)), jnp.ones((3, 2), bool).at[2, 0].set(False)

    @nnx.jit
    def compute(model):
        output, carry, steps = model(inputs, mask=mask), model.start(2), []
        for x in inputs:
            carry, logits = model.step(carry, x)
            steps.append(logits)
        return output.logits, output.carry, model.head(layer(None, model.encoder(inputs), mask=mask)[1]), steps

    logits, carry, expected, steps = compute(model)
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    np.testing.assert_allclose(logits[:, 1], jnp.stack(steps)[:, 1], atol=1e-5)
    assert carry.memory.now.weights[0].shape == (2, 1, 4, 4)
    with pytest.raises(ValueError, match="fork needs a cell, which runs step by step, got a layer, NeuralMemoryLayer"):
        model(inputs, mask=mask, fork=~mask)
    with pytest.raises(ValueError, match="form needs a cell"):
        model(inputs, mask=mask, form="factored")
    with pytest.raises(ValueError, match="reset_controller needs a cell"):
        model.step(model.start(2), inputs[0], reset_controller=mask[0])
