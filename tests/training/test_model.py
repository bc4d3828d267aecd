"""The dtypes of the model: a head computes in its own dtype, whatever the dtype of the cell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import LSTMCell, unroll
from mnm_jax.training import SequenceModel


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_the_head_casts_the_features_of_a_cell_in_bfloat16(dtype):
    cell = LSTMCell(3, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    model = SequenceModel(lambda x: x, cell, 5, dtype=dtype, rngs=nnx.Rngs(1))
    inputs = jax.random.normal(jax.random.key(2), (2, 3, 3))
    features = np.asarray(unroll(cell, None, inputs)[1], np.float32)
    expected = features @ np.asarray(model.head.kernel)
    logits = model(inputs).logits
    assert logits.dtype == (dtype or jnp.float32) and model.head.kernel.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(logits, np.float32), expected, atol=1e-6 if dtype is None else 2e-2)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"classes": 0}, "classes must be >= 1, got 0"),
        ({"classes": 2.0}, "classes must be an integer >= 1, got 2.0 of type float"),
        ({"readout_features": -1}, "readout_features must be >= 0, got -1"),
        ({"readout_features": None}, "readout_features must be an integer >= 0, got None"),
        ({"encoder": None}, "encoder must be a function, got None"),
    ],
)
def test_bad_settings_are_named(changes, message):
    settings = {"encoder": lambda x: x, "classes": 2} | changes
    with pytest.raises((ValueError, TypeError), match=message):
        SequenceModel(cell=LSTMCell(3, 4, rngs=nnx.Rngs(0)), **settings, rngs=nnx.Rngs(1))
