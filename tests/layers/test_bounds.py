"""Tests that outputs of untrained layers stay bounded over long sequences, as the layer's docstring states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import NeuralMemoryLayer, WriteOptions, gradient_memory, local_memory, matrix_memory
from tests.layers.common import run_by_chunks, run_by_steps

D = 6
FORGET, BOTH = WriteOptions(forget=True), WriteOptions("l2", forget=True, momentum=True)
BOUNDED = {
    "MNM-p": local_memory(4, 4, hidden_sizes=(8,)),
    "MNM-p, deep, gates": local_memory(4, 4, hidden_sizes=(8, 8), options=BOTH),
    "MNM-g": gradient_memory(4, 4, hidden_sizes=(8,)),
    "MNM-g, deep, forget": gradient_memory(4, 4, hidden_sizes=(8, 8), options=FORGET),
    "Titans, normalised": gradient_memory(4, 4, hidden_sizes=(8,), options=BOTH),
    "DeltaNet": matrix_memory(4, 4, options=WriteOptions("l2")),
    "gated delta rule": matrix_memory(4, 4, options=WriteOptions("l2", forget=True)),
    "linear attention, forget": matrix_memory(4, 4, "hebbian", options=WriteOptions("l2", forget=True)),
}


def make(memory, **settings):
    return NeuralMemoryLayer(D, memory, heads=2, **settings, rngs=nnx.Rngs(0))


def make_inputs(steps):
    """Returns three sequences: numbers from N(0, 1), one token repeated, and zeros."""
    draws = jax.random.normal(jax.random.key(9), (steps, D))
    return jnp.stack([draws, jnp.broadcast_to(draws[:1], draws.shape), jnp.zeros_like(draws)], 1)


def largest(result):
    return float(jnp.max(jnp.abs(result[1]))) if np.all(np.isfinite(result[1])) else np.inf


@pytest.mark.parametrize("name", BOUNDED)
def test_outputs_are_bounded(name):
    assert largest(run_by_chunks(make(BOUNDED[name], chunk=16), make_inputs(2000))) < 60


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 4, 16, 64, "steps"])
@pytest.mark.parametrize("name", BOUNDED)
def test_outputs_are_bounded_for_long(name, chunk):
    layer, run = make(BOUNDED[name], chunk=16 if chunk == "steps" else chunk), run_by_chunks
    assert largest((run_by_steps if chunk == "steps" else run)(layer, make_inputs(20_000))) < 100


def test_what_can_grow_grows():
    """The cases that the docstring names; they would be bounded by the remedies above."""
    inputs = make_inputs(500)
    stale = make(gradient_memory(4, 4, hidden_sizes=(8,)), chunk=16, stale=True)
    titans = make(gradient_memory(4, 4, hidden_sizes=(8,), step_size="sum", options=BOTH), chunk=16, stale=True)
    attention = make(matrix_memory(4, 4, "hebbian"), chunk=16)
    for layer in (stale, titans, attention):
        assert largest(run_by_chunks(layer, inputs)) > 60


@pytest.mark.parametrize("run", [run_by_chunks, run_by_steps])
def test_reflections_of_alternating_values_grow(run):
    """At rate 2 the answer to one key grows by 2 |v| per token; with a forget gate it grows by a factor above 1."""
    steps = 500
    values = jnp.where(jnp.arange(steps) % 2 == 0, 1.0, -1.0)
    inputs = jnp.stack([jnp.ones(steps), values], -1)[:, None]
    copies = jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])  # key, value and query: the first, second and first feature

    def last_answer(options, max_rate):
        layer = NeuralMemoryLayer(
            2, matrix_memory(1, 1, options=options), chunk=16, max_rate=max_rate, hard_rate=True, rngs=nnx.Rngs(0)
        )
        layer.to_vectors.kernel.set_value(copies)
        layer.to_gates.kernel.set_value(jnp.zeros_like(layer.to_gates.kernel))
        layer.to_gates.bias.set_value(layer.to_gates.bias.get_value().at[0].set(10.0))  # the largest rate
        return abs(float(run(layer, inputs)[0].memory.now.weights[0].item()))

    assert last_answer(WriteOptions("l2"), 1.0) == pytest.approx(1)
    assert last_answer(WriteOptions("l2"), 2.0) == pytest.approx(2 * steps, rel=1e-3)
    alpha = 1 / (1 + np.exp(4))  # the initial forget gate
    growth = lambda rate: rate * ((alpha + rate - 1) ** steps - 1) / (alpha + rate - 2)  # noqa: E731
    for rate, size in ((1.9, 24), (2.0, 8e5)):  # below and above 2 - alpha
        assert last_answer(WriteOptions("l2", forget=True), rate) == pytest.approx(growth(rate), rel=1e-2)
        assert growth(rate) == pytest.approx(size, rel=0.1)


def test_normalised_steps_keep_the_size_of_reflections_in_half_precision():
    """Each sequence repeats one token at rate 2; the delta rule's keys have a length that is rounded from one."""
    tokens = jax.random.normal(jax.random.key(8), (1, 16, D))
    inputs, unit, sizes = jnp.broadcast_to(tokens, (2000, 16, D)), WriteOptions("l2"), []
    for memory in (matrix_memory(4, 4, options=unit), gradient_memory(4, 4, hidden_sizes=(), options=unit)):
        layer = make(memory, chunk=16, max_rate=2.0, hard_rate=True, dtype=jnp.bfloat16)
        layer.to_gates.bias.set_value(jnp.full(2, 10.0))
        sizes.append(largest(run_by_chunks(layer, inputs)))
    assert sizes[0] > 1000 and sizes[1] < 4, sizes


def test_a_forget_gate_bounds_the_hidden_weights_of_the_local_rule():
    inputs = make_inputs(2000)
    for options, bounded in ((WriteOptions(), False), (FORGET, True)):
        carry, _ = run_by_chunks(make(local_memory(4, 4, hidden_sizes=(8,), options=options), chunk=64), inputs)
        assert (float(jnp.linalg.norm(carry.memory.now.weights[0])) < 100) == bounded


TABLE = {4: (0.19, 0.34), 16: (0.31, 5), 64: (0.38, 10_000)}  # as in the docstring of the layer


@pytest.mark.parametrize("chunk", [16, *(pytest.param(chunk, marks=pytest.mark.slow) for chunk in (4, 64))])
def test_the_linearised_chunk_is_nearer_to_single_tokens_than_the_stale_one(chunk):
    inputs, memory = make_inputs(512)[:, :1], gradient_memory(4, 4, hidden_sizes=(8,))
    settings = {"single": {"chunk": 1}, "linearised": {"chunk": chunk}, "stale": {"chunk": chunk, "stale": True}}
    single, linearised, stale = (run_by_chunks(make(memory, **given), inputs)[1] for given in settings.values())
    distance = lambda outputs: float(jnp.linalg.norm(outputs - single) / jnp.linalg.norm(single))  # noqa: E731
    expected = TABLE[chunk]
    assert distance(linearised) == pytest.approx(expected[0], rel=0.1)
    if chunk == 4:
        assert distance(stale) == pytest.approx(expected[1], rel=0.1)
    else:  # it grows exponentially, so that its digits depend on rounding
        assert distance(stale) > 0.9 * expected[1]
