"""Tests the LSTM and the plain RNN against flax's cells, and the number of output features of any cell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import LSTMCell, RNNCell, unroll
from mnm_jax.cells import output_features

PAIRS = [(LSTMCell, nnx.OptimizedLSTMCell), (RNNCell, nnx.SimpleCell)]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_numbers_are_those_of_flax(ours, theirs):
    cell, reference = ours(3, 4, rngs=nnx.Rngs(0)), theirs(3, 4, rngs=nnx.Rngs(1))
    nnx.update(reference, nnx.state(cell))
    x = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    _, expected = jax.lax.scan(reference, reference.initialize_carry((2, 3), nnx.Rngs(2)), x)
    np.testing.assert_array_equal(unroll(cell, None, x)[1], expected)


def test_recurrent_kernels_are_orthogonal_in_bfloat16_too():
    cell = RNNCell(3, 8, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    kernel = np.asarray(cell.dense_h.kernel.get_value(), np.float32)
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(8), atol=0.02)


def test_output_features_of_ours_of_flaxs_and_of_an_unknown_cell():
    assert output_features(LSTMCell(3, 4, rngs=nnx.Rngs(0))) == 4
    assert output_features(nnx.GRUCell(3, 5, rngs=nnx.Rngs(0))) == 5

    class Own(nnx.RNNCellBase):
        pass

    with pytest.raises(TypeError, match="Own has no out_features: set it to the number of features of its outputs"):
        output_features(Own())
