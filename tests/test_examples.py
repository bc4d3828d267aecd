"""Tests that the examples run as programs and show what their docstrings state."""

import pathlib
import runpy
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from matplotlib import image

from mnm_jax import MNMCell, local_memory, unroll

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(capsys):
    """Runs an example as a program; returns its names and its output."""

    def run_example(name):
        with jax.numpy_dtype_promotion("standard"):  # the default outside this suite: optax mixes dtypes
            names = runpy.run_module(f"examples.{name}", run_name="__main__")
        assert f"python -m examples.{name}" in names["__doc__"]
        return names, capsys.readouterr().out

    return run_example


def test_the_memory_alone_recalls_what_was_written(run):
    names, printed = run("memory_alone")
    errors = names["errors"]
    assert set(errors) == {"MNM-g", "MNM-p"} and max(errors.values()) < 1e-6
    assert "MNM-g: mean square error" in printed


def test_flax_rnn_gives_what_unroll_gives(run):
    names, printed = run("flax_rnn")
    features = names["features"]
    inputs = jax.random.normal(jax.random.key(0), (3, 7, 5))
    cell = MNMCell(5, 16, local_memory(8, 8, hidden_sizes=(8,)), heads=2, rngs=nnx.Rngs(0))
    _, outputs = nnx.jit(unroll)(cell, cell.initialize_carry((3, 5)), inputs.swapaxes(0, 1))
    np.testing.assert_allclose(features[0], outputs.features[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features[1, :4], outputs.features[:4, 1], rtol=1e-5, atol=1e-6)
    assert printed == f"features {features.shape}\n"


@pytest.mark.parametrize(("name", "limit"), [("linen_model", 0.1), ("plain_scan", 0.5)])
def test_a_model_learns(run, name, limit):
    names, printed = run(name)
    losses = names["losses"]
    assert losses[-1] < limit * losses[0] and all(np.isfinite(losses)) and "loss" in printed


def test_an_equinox_module_learns(run):
    losses = run("equinox_model")[0]["losses"]
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:5])


def test_inputs_one_by_one_give_what_the_sequence_gives(run):
    names, _ = run("streaming")
    assert names["one_by_one"].shape == (20, 2, 12)
    np.testing.assert_allclose(names["one_by_one"], names["in_two_parts"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_language_model_is_trained_and_then_streamed_with_equal_numbers(run):
    names, printed = run("layer_beside_attention")
    assert names["losses"][0] > 4.3 and np.mean(names["losses"][-5:]) < 3.3 and names["difference"] < 1e-4
    assert "streamed characters differ by" in printed


def test_packed_episodes_give_what_each_gives_alone(run):
    names, _ = run("packed_episodes")
    assert names["packed"].shape == (12, 12)
    np.testing.assert_allclose(names["packed"], names["separate"], rtol=1e-5, atol=1e-6)


def test_a_trained_model_is_loaded_and_its_memory_drawn(run, tmp_path, monkeypatch):
    """At a question the read value resembles, up to its sign, the one written with the letter's translation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["load_and_plot"])
    names, printed = run("load_and_plot")
    values = abs(names["maps"].values)
    tokens = printed.splitlines()[0].removeprefix("input   ").split()
    asked = [step for step, token in enumerate(tokens) if token == "?"]
    right = []
    for step in asked:
        shown = [s + 1 for s in range(0, asked[0] - 1, 2) if tokens[s] == tokens[step - 1]]
        others = [s + 1 for s in range(0, asked[0] - 1, 2) if tokens[s] != tokens[step - 1]]
        right.append(max(values[step, shown]) > max(values[step, others]))
    assert len(right) == 8 and np.mean(right) > 0.8
    assert image.imread("memory_map.png").std() > 0.05


def test_every_example_is_short_and_tested():
    examples = {path.stem: path for path in EXAMPLES.glob("*.py")}
    tests = pathlib.Path(__file__).read_text()
    assert [name for name in examples if f'"{name}"' not in tests] == []
    assert all(len(path.read_text().splitlines()) < 60 for path in examples.values())
