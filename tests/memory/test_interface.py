"""Tests the interface: memories with equal settings are equal, and a user's memory needs only the abstract methods."""

import pickle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import MNMCell, unroll, unroll_memory
from mnm_jax.memory import (
    Memory,
    MemoryParams,
    Pair,
    WriteInfo,
    WriteOptions,
    custom_memory,
    gradient_memory,
    local_memory,
    matrix_memory,
    rule_memory,
)


def hebb(network, weights, keys, values):
    return (Pair(keys, -values),), weights.product(0, keys)


def apply(weights, key):
    return key @ weights


def init(key):
    return jnp.eye(4, 3)


OPTIONS = {"key_norm": "l2", "forget": True}
MAKERS = {
    "gradient": lambda **how: gradient_memory(4, 3, hidden_sizes=[5], options=WriteOptions(**OPTIONS), **how),
    "local": lambda **how: local_memory(4, 3, hidden_sizes=[5], activation=jnp.tanh, param_dtype="bfloat16", **how),
    "matrix": lambda **how: matrix_memory(4, 3, **how),
    "rule": lambda **how: rule_memory(4, 3, hebb, activation=jax.nn.gelu, **how),
    "custom": lambda **how: custom_memory(4, 3, init=init, apply=apply, **how),
}


@pytest.mark.parametrize("name", MAKERS)
def test_equal_settings_make_equal_memories(name):
    first, second = MAKERS[name](), MAKERS[name]()
    assert first == second and hash(first) == hash(second) and first is not second
    assert pickle.loads(pickle.dumps(first)) == first
    other = MAKERS[name](learn_initial=not first.learn_initial)
    assert other != first and pickle.loads(pickle.dumps(other)) == other


def test_a_function_without_a_name_is_an_error_of_pickle_and_no_hindrance_otherwise():
    activation = lambda x: x  # noqa: E731
    first, second = (gradient_memory(4, 3, hidden_sizes=(5,), activation=activation) for _ in range(2))
    assert first == second and hash(first) == hash(second)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(first)


def test_a_second_equal_memory_compiles_nothing_anew():
    cells = [MNMCell(3, 4, MAKERS["local"](), rngs=nnx.Rngs(seed)) for seed in range(2)]
    (first, _), (second, _) = map(nnx.split, cells)
    assert first == second and hash(first) == hash(second)
    assert jax.tree.structure(cells[0]) == jax.tree.structure(cells[1])
    traces = []

    @jax.jit
    def run(cell, x):
        traces.append(x.shape)
        return cell(cell.initialize_carry(x.shape), x)[1].features

    outputs = [run(cell, jnp.ones((2, 3))) for cell in cells]
    assert len(traces) == 1 and np.any(outputs[0] != outputs[1])


class LastValue(Memory):
    """A memory that answers any key with the last value written."""

    key_size, value_size, gates, pairs_only = 2, 3, (), False

    def init(self, key):
        return MemoryParams(jax.random.normal(key, (3,)), None)

    def start(self, params, batch_size):
        return jnp.broadcast_to(params.weights, (batch_size, 3))

    def read(self, params, state, keys):
        return jnp.broadcast_to(state[:, None], (*keys.shape[:2], 3))

    def write_read(self, params, state, keys, values, rate, read_keys):
        new = state + rate[:, None] * (values[:, -1] - state)
        info = WriteInfo(*(jnp.zeros_like(rate),) * 3)
        return new, info, self.read(params, new, read_keys)


def test_a_memory_of_ones_own_runs_in_a_cell():
    memory = LastValue()
    cell = MNMCell(3, 4, memory, rngs=nnx.Rngs(0))
    carry, outputs = unroll(cell, None, jax.random.normal(jax.random.key(0), (5, 2, 3)))
    state = memory.start(cell.memory_params.get_value(), 2)
    for values, rate in zip(outputs.trace.write_values, outputs.trace.rate, strict=True):
        state, _ = memory.write(None, state, jnp.ones((2, 1, 2)), values, rate)
    np.testing.assert_allclose(carry.memory, state, rtol=1e-6)
    np.testing.assert_allclose(carry.read, state, rtol=1e-6)


def test_a_state_of_another_type_runs_in_two_parts_by_unroll_memory():
    memory = LastValue()
    params = memory.init(jax.random.key(0))
    values, rate = jax.random.normal(jax.random.key(1), (4, 2, 1, 3)), jnp.full((4, 2), 0.5)
    given = jnp.ones((4, 2, 1, 2)), values, rate, jnp.ones((4, 2, 1, 2))
    whole, _, reads = unroll_memory(memory, params, None, *given)
    first, _, _ = unroll_memory(memory, params, None, *(x[:1] for x in given))
    second, _, rest = unroll_memory(memory, params, first, *(x[1:] for x in given))
    np.testing.assert_array_equal(second, whole)
    np.testing.assert_array_equal(rest, reads[1:])
    with pytest.raises(TypeError, match="must be from this memory's start or write, but"):
        unroll_memory(memory, params, first[:1], *given)


class MarkedState(NamedTuple):
    """A state with the property that marks it as a memory's."""

    value: Any

    @property
    def of_memory(self):
        return True


class MarkedLastValue(LastValue):
    """The same memory with a marked state."""

    def start(self, params, batch_size):
        return MarkedState(super().start(params, batch_size))

    def read(self, params, state, keys):
        return super().read(params, state.value, keys)

    def write_read(self, params, state, keys, values, rate, read_keys):
        new = MarkedState(state.value + rate[:, None] * (values[:, -1] - state.value))
        return new, WriteInfo(*(jnp.zeros_like(rate),) * 3), self.read(params, new, read_keys)


@pytest.mark.parametrize("meta_window", [1, 2])
def test_flags_about_the_memory_need_a_marked_state(meta_window):
    xs, flags = jax.random.normal(jax.random.key(0), (4, 2, 3)), jnp.ones((4, 2), bool)
    cell = MNMCell(3, 4, LastValue(), meta_window=meta_window, rngs=nnx.Rngs(0))
    for name in ("reset_controller", "fork_memory"):
        with pytest.raises(ValueError, match=f"{name} must find .* the state of LastValue .* of_memory = True"):
            unroll(cell, None, xs, **{name: flags})
    marked = MNMCell(3, 4, MarkedLastValue(), meta_window=meta_window, rngs=nnx.Rngs(0))
    start = cell.memory_params.get_value().weights
    carry, outputs = unroll(marked, None, xs, fork_memory=flags)
    np.testing.assert_array_equal(carry.memory.value, jnp.broadcast_to(start, (2, 3)))
    carry, outputs = unroll(marked, None, xs, reset_controller=flags)
    state = jnp.broadcast_to(start, (2, 3))
    for values, rate in zip(outputs.trace.write_values, outputs.trace.rate, strict=True):
        state = state + rate[:, None] * (values[:, 0] - state)
    np.testing.assert_allclose(carry.memory.value, state, rtol=1e-6)


def test_pairs_without_the_librarys_state_run_plain():
    """`pairs_only` promises that the fast forms can follow the memory, whose state they do not know."""

    class Promising(LastValue):
        pairs_only = True

        def init(self, key):
            return MemoryParams((jax.random.normal(key, (1, 3)),), None)

        def start(self, params, batch_size):
            return jnp.broadcast_to(params.weights[0], (batch_size, 3))

    cell = MNMCell(3, 4, Promising(), rngs=nnx.Rngs(0))
    xs = jax.random.normal(jax.random.key(0), (4, 2, 3))
    plain = unroll(cell, None, xs, form="plain")[1].features
    np.testing.assert_array_equal(unroll(cell, None, xs)[1].features, plain)
    for form in ("reversible", "factored"):
        with pytest.raises(ValueError, match="has no MemoryState: use unroll.*form='plain'"):
            unroll(cell, None, xs, form=form)


def test_a_memory_without_all_methods_cannot_be_made():
    class Unfinished(LastValue):
        write_read = Memory.write_read

    with pytest.raises(TypeError, match="abstract .*write_read"):
        Unfinished()
