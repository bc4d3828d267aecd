"""The examples work as their text says."""

import jax
import numpy as np
from flax import nnx

from examples import flax_rnn, linen_model, memory_alone, plain_scan
from mnm_jax import MNMCell, local_memory, unroll


def test_the_memory_alone_recalls_what_was_written(capsys):
    errors = memory_alone.recall_errors()
    assert set(errors) == {"MNM-g", "MNM-p"} and max(errors.values()) < 2e-3  # epsilon = 1e-3 is the loss of one write
    assert "MNM-g: mean square error" in capsys.readouterr().out


def test_flax_rnn_gives_what_unroll_gives():
    features = flax_rnn.run()
    inputs = jax.random.normal(jax.random.key(0), (3, 7, 5))
    cell = MNMCell(5, 16, local_memory(8, 8, hidden_sizes=(8,)), heads=2, rngs=nnx.Rngs(0))
    _, outputs = unroll(cell, cell.initialize_carry((3, 5)), inputs.swapaxes(0, 1))
    np.testing.assert_allclose(features[0], outputs.features[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features[1, :4], outputs.features[:4, 1], rtol=1e-5, atol=1e-6)


def test_linen_model_learns():
    with jax.numpy_dtype_promotion("standard"):  # as a user runs it: optax mixes dtypes
        losses = linen_model.train()
    assert losses[-1] < 0.1 * losses[0]


def test_plain_scan_descends():
    losses = plain_scan.descend()
    assert losses[-1] < 0.5 * losses[0] and all(np.isfinite(losses))
