"""Tests options of a write in numbers of 16 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import NeuralMemoryLayer, WriteOptions, custom_memory, gradient_memory, local_memory, matrix_memory
from mnm_jax.memory import MemoryParams
from tests.compiled import compiled


@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize(("stored", "computed"), [(jnp.bfloat16, jnp.float16), (jnp.float16, jnp.bfloat16)])
def test_weights_and_products_in_different_numbers_of_16_bits_meet_in_float32(stored, computed, forget):
    """A write of the value 2 moves a weight of 1 by twice the error of 1."""
    options = WriteOptions(forget=forget)
    memory = compiled(gradient_memory(1, 1, hidden_sizes=(), step_size="sum", options=options, param_dtype=stored))
    params = MemoryParams((jnp.ones((1, 1), stored),), None)
    ones, gates = jnp.ones((1, 1, 1), computed), {"forget": jnp.zeros(1, computed)} if forget else {}
    state, _ = memory.write(params, memory.start(params, 1), ones, 2 * ones, jnp.ones(1, computed), **gates)
    assert state.weights[0].dtype == stored and float(state.weights[0][0, 0, 0]) == 3.0
    read = memory.read(params, state, ones)
    assert read.dtype == computed and float(read[0, 0, 0]) == 3.0


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_keys_of_every_size_are_normalised_in_float16(size):
    """Their squares are out of the range of float16."""
    memory = compiled(gradient_memory(2, 2, hidden_sizes=(), options=WriteOptions(key_norm="l2")))
    params = memory.init(jax.random.key(0))
    state = memory.start(params, 1)._replace(weights=(np.eye(2, dtype=np.float32)[None],))
    answer = memory.read(params, state, np.asarray([[[3 * size, 4 * size]]], np.float16))
    np.testing.assert_allclose(answer, [[[0.6, 0.8]]], rtol=2e-3)


@pytest.mark.parametrize("how", ["l2", "layer"])
def test_undefined_keys_stay_undefined(how):
    """Zeros would hide damaged weights."""
    memory = compiled(matrix_memory(3, 2, options=WriteOptions(key_norm=how)))
    params = memory.init(jax.random.key(0))
    keys = np.asarray([[[1.0, np.nan, 2.0]], [[0.0, 0.0, 0.0]]], np.float32)
    state, info = memory.write(params, memory.start(params, 2), keys, jnp.ones((2, 1, 2)), jnp.ones(2))
    for numbers in map(np.asarray, (memory.read(params, state, keys), state.weights[0], info.update_norm)):
        assert np.all(np.isnan(numbers[0])) and np.all(numbers[1] == 0)


def test_a_small_forget_gate_in_bfloat16_still_forgets():
    """1 - 0.0018 is 1 in bfloat16, while the weights are in float32."""
    memory = matrix_memory(2, 1, options=WriteOptions(forget=True))
    state = memory.start(memory.init(jax.random.key(0)), 1)
    state = state._replace(weights=(jnp.ones((1, 2, 1)),))
    key, gate = jnp.ones((1, 1, 2), jnp.bfloat16), jnp.full(1, 0.0018, jnp.bfloat16)
    params, rate = memory.init(jax.random.key(0)), jnp.zeros(1, jnp.bfloat16)

    def write(_, state):
        return memory.write(params, state, key, key[..., :1], rate, forget=gate)[0]

    state = jax.jit(lambda state: jax.lax.fori_loop(0, 1000, write, state))(state)
    np.testing.assert_allclose(state.weights[0], (1 - float(gate[0])) ** 1000, rtol=1e-3)


@pytest.mark.parametrize("make", [gradient_memory, local_memory])
def test_a_short_key_of_one_head_stores_its_value_in_float16(make):
    """1 / |k|^2 = 1.1e5 is out of the range of float16."""
    memory = compiled(make(1, 1, hidden_sizes=()))
    params = memory.init(jax.random.key(0))
    params = params._replace(weights=(jnp.zeros((1, 1)),))
    key, one = jnp.full((1, 1, 1), 0.003, jnp.float16), jnp.ones((1, 1, 1), jnp.float16)
    state, _ = memory.write(params, memory.start(params, 1), key, one, one[:, 0, 0])
    np.testing.assert_allclose(memory.read(params, state, key), 1, rtol=2e-3)


@pytest.mark.parametrize("make", [gradient_memory, local_memory])
def test_short_keys_of_a_layer_store_their_values_in_float16(make):
    """The key and the query are 0.003 times the first input, the value is the second."""
    memory, outputs = make(1, 1, hidden_sizes=()), []
    for dtype in (jnp.float16, jnp.float32):
        layer = NeuralMemoryLayer(2, memory, chunk=4, dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
        layer.to_vectors.kernel[...] = jnp.array([[0.003, 0.0, 0.003], [0.0, 1.0, 0.0]])
        inputs = jnp.stack([jnp.ones((8, 3)), jax.random.normal(jax.random.key(0), (8, 3))], -1)
        outputs.append(jax.jit(layer)(None, inputs.astype(dtype))[1])
    assert jnp.max(jnp.abs(outputs[1])) > 0.1
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("size", [100.0, 200.0])
def test_large_values_are_written_in_float16_as_in_float32(heads, size):
    """The squares of the error and of its derivatives are out of the range of float16."""
    memory = compiled(gradient_memory(8, 8, hidden_sizes=(16,)))
    params = memory.init(jax.random.key(0))
    state = memory.start(params, 3)
    keys, values = np.random.default_rng(heads).normal(size=(2, 3, heads, 8))

    def change(dtype):
        arguments = (x.astype(dtype) for x in (keys, size * values, np.ones(3)))
        written, _ = memory.write(params, state, *arguments)
        return [np.asarray(new) - old for new, old in zip(written.weights, state.weights, strict=True)]

    for half, full in zip(change(np.float16), change(np.float32), strict=True):
        assert np.linalg.norm(half - full) < 0.01 * np.linalg.norm(full)


def test_writes_of_long_keys_in_a_chunk_are_not_lost_in_float16():
    """|psi|^2, the squared length of the features of the linearised network, is out of the range of float16."""
    memory = gradient_memory(16, 4, hidden_sizes=(16,), activation=jax.nn.relu)
    state = memory.start(memory.init(jax.random.key(0)), 2)
    keys, values = (jax.random.normal(jax.random.key(seed), (2, 3, size)) for seed, size in ((1, 16), (2, 4)))

    @jax.jit
    def deltas(keys, values):
        pairs = memory.rule.row_pairs(memory.network, None, state, keys, values)
        return [pair.delta.astype(jnp.float32) for pair in pairs]

    both = (deltas((100 * keys).astype(dtype), values.astype(dtype)) for dtype in (jnp.float16, jnp.float32))
    for half, full in zip(*map(jax.device_get, both), strict=True):
        assert np.linalg.norm(half - full) < 0.02 * np.linalg.norm(full)


MEMORIES = {
    "pairs": local_memory(8, 8, hidden_sizes=()),
    "never worse": gradient_memory(8, 8, hidden_sizes=(), options=WriteOptions(never_worse=True)),
    "gated": local_memory(8, 8, hidden_sizes=(), options=WriteOptions(forget=True)),
    "custom": custom_memory(8, 8, init=lambda key: jax.random.normal(key, (8, 8)), apply=lambda w, k: k @ w),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_the_measures_of_a_write_in_bfloat16_are_those_of_its_answers_in_float32(name):
    """Not compiled as a whole: XLA would leave out the rounding of the answers."""
    memory = MEMORIES[name]
    params = memory.init(jax.random.key(0))
    keys, values = jax.random.normal(jax.random.key(1), (2, 5, 2, 8), jnp.bfloat16)
    rate, gates = jnp.full(5, 0.5, jnp.bfloat16), {gate: jnp.full(5, 0.1, jnp.bfloat16) for gate in memory.gates}
    state = memory.start(params, 5)
    new, info = memory.write(params, state, keys, values, rate, **gates)
    assert {leaf.dtype for leaf in info} == {jnp.dtype(jnp.float32)}
    for found, weights in ((info.loss_before, state), (info.loss_after, new)):
        answers = np.asarray(memory.read(params, weights, keys), np.float64)
        np.testing.assert_allclose(found, np.mean((answers - np.asarray(values, np.float64)) ** 2, (1, 2)), rtol=1e-5)
    (old,), (weights,) = jax.tree.leaves(state.weights), jax.tree.leaves(new.weights)
    np.testing.assert_allclose(info.update_norm, np.linalg.norm(np.asarray(weights) - old, axis=(1, 2)), rtol=1e-4)
