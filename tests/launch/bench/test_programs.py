"""Tests that the programs of a suite, which are compared in time, compute the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from matplotlib import image

from launch.bench.figures import draw_layer
from launch.bench.forms import compile_step
from launch.bench.layer import layer
from launch.bench.own_program import own_program
from launch.bench.peers import StreamCell, lstm, peers
from launch.bench.seeds import seeds
from mnm_jax import MNMCell, local_memory


def test_peers_without_titans_are_our_own(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    groups = list(peers(jax.devices(), steps=(4,)))
    assert [candidate.fields["peer"] for candidate in groups[0].candidates] == ["plain", "auto"]
    assert "pip install titans-pytorch" in capsys.readouterr().err


def test_the_lstm_is_the_same_on_one_device_and_on_two(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (group,) = lstm(jax.devices()[:2], steps=(2,), batch=2, width=4)
    assert [candidate.fields["peer"] for candidate in group.candidates] == ["unroll", "unroll, 2 devices"]
    assert "pip install torch" in capsys.readouterr().err
    one, two = (candidate.prepare().run() for candidate in group.candidates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one, two)


def _cell():
    return MNMCell(4, 4, local_memory(4, 4, hidden_sizes=()), heads=2, rngs=nnx.Rngs(0))


def _stream_cell():
    return StreamCell(4, local_memory(4, 4, hidden_sizes=()), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("make_cell", "form"), [(_cell, "plain"), (_stream_cell, "plain"), (_stream_cell, "auto")])
def test_the_batch_on_several_devices_is_the_batch_on_one(make_cell, form):
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 4)), jnp.float32)
    value, grads = compile_step(make_cell(), form, inputs, jax.devices()).run()
    expected, expected_grads = compile_step(make_cell(), "plain", inputs, jax.devices()[:1]).run()
    most = max(n for n in (1, 2, 3, 6) if n <= len(jax.devices()))  # numbers of devices that divide the batch of 6
    assert len(value.sharding.device_set) == most
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for grad, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(grad, other, rtol=1e-3, atol=1e-4)  # allows another order of sums
    assert max(float(jnp.abs(grad).max()) for grad in jax.tree.leaves(grads)) > 0


@pytest.mark.slow
def test_a_users_own_programs_compute_what_the_training_program_computes():
    sizes = {"rules": ("local",), "heads": (1,), "steps": (2,), "batch": 4, "width": 4}
    (group,) = own_program(jax.devices()[:2], **sizes)
    results = [candidate.prepare().run() for candidate in group.candidates]
    assert len(results[0][0].sharding.device_set) == len(results[1][0].sharding.device_set) == 2
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), other, results[0])


def test_seeds_side_by_side_and_one_after_the_other_take_the_same_step():
    config = {
        "task": {"name": "dictionary", "support": 2, "queries": 1},
        "model": {"name": "lstm", "hidden_features": 4},
        "training": {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "seeds": 2},
    }
    (group,) = seeds(jax.devices(), config=config)
    one_after_the_other, side_by_side = (candidate.prepare().run()[0] for candidate in group.candidates)
    assert [candidate.fields["mapping"] for candidate in group.candidates] == ["map", "vmap"]
    np.testing.assert_array_equal(one_after_the_other.step, [1, 1])
    for a, b in zip(jax.tree.leaves(one_after_the_other.params), jax.tree.leaves(side_by_side.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", ["delta rule", pytest.param("titans", marks=pytest.mark.slow)])
def test_a_sequence_in_chunks_and_token_by_token_is_one_function(memory):
    sizes = {"steps": (5,), "lengths": (), "batch": 2, "features": 4, "heads": 1, "chunk": 2}
    (group,) = layer(jax.devices()[:1], memories=(memory,), passes=("training",), **sizes)
    assert [candidate.fields["form"] for candidate in group.candidates] == ["steps", "chunks", "maps"]
    by_steps, by_chunks, by_maps = (candidate.prepare().run() for candidate in group.candidates)
    assert jax.tree.map(jnp.shape, by_maps) == jax.tree.map(jnp.shape, by_chunks)
    for a, b in zip(jax.tree.leaves(by_steps), jax.tree.leaves(by_chunks), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(by_chunks)) > 0.01


def test_models_beside_the_layer_are_measured_by_length(tmp_path):
    """Each model's row has value and gradient of its own parameters; attention is the reference."""
    sizes = {"memories": (), "lengths": (4,), "batch": 2, "features": 4, "heads": 1, "chunk": 2}
    models = ("delta rule", "softmax attention", "LSTM")
    (group,) = layer(jax.devices()[:1], models=models, **sizes)
    values, gradients = zip(*(candidate.prepare().run() for candidate in group.candidates), strict=True)
    assert np.all(np.asarray(values) > 0)
    assert all(max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads)) > 1e-3 for grads in gradients)
    assert [sum(x.size for x in jax.tree.leaves(grads)) for grads in gradients] == [1029 + 64 * 64, 1024, 144]
    rows = [
        {"model": name, "steps": 4, "milliseconds": ms, "temp_bytes": 8}
        for name, ms in zip(models, (2, 6, 3), strict=True)
    ]
    assert [row["ratio_to_softmax attention"] for row in group.finish(rows)] == [3, 1, 2]
    draw_layer(rows, tmp_path / "layer.png", "models alone")
    assert image.imread(tmp_path / "layer.png").std() > 0.05
