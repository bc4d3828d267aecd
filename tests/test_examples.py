"""Tests that the examples run and show what their docstrings state."""

import pathlib
import runpy
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from examples import equinox_model, flax_rnn, linen_model, memory_alone, packed_episodes, plain_scan, streaming
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
    with jax.numpy_dtype_promotion("standard"):  # the default outside this suite: optax mixes dtypes
        losses = linen_model.train()
    assert losses[-1] < 0.1 * losses[0]


def test_plain_scan_descends():
    losses = plain_scan.descend()
    assert losses[-1] < 0.5 * losses[0] and all(np.isfinite(losses))


def test_an_equinox_module_learns():
    with jax.numpy_dtype_promotion("standard"):
        losses = equinox_model.train(200)
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:5])


def test_inputs_one_by_one_give_what_the_sequence_gives():
    one_by_one, in_two_parts = streaming.stream()
    assert one_by_one.shape == (20, 2, 12)
    np.testing.assert_allclose(one_by_one, in_two_parts, rtol=1e-5, atol=1e-6)


def test_packed_episodes_give_what_each_gives_alone():
    packed, alone = packed_episodes.pack()
    assert packed.shape == (12, 12)
    np.testing.assert_allclose(packed, alone, rtol=1e-5, atol=1e-6)


EXAMPLES = sorted((pathlib.Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_short_and_runs_with_smoke(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--smoke"])
    with jax.numpy_dtype_promotion("standard"):
        content = runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out
    assert f"python -m examples.{path.stem} [--smoke]" in content["__doc__"]
    assert len(path.read_text().splitlines()) < 60
